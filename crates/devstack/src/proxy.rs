//! A TCP proxy that fails on command: between our processes and a server, to be a bad network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Bytes that may be on their way in one direction.
const BUFFER: usize = 64 << 10;
/// Time to reach the server.
const CONNECT: Duration = Duration::from_secs(5);

/// What it does with what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything passes.
    Pass,
    /// Connections are cut, and new ones closed at once.
    Cut,
    /// Connections stand and are accepted, but nothing passes either way; it does once the mode changes.
    Silent,
    /// What clients send passes; what the server answers does not.
    NoAnswers,
}

/// A proxy in front of one server. Its connections end with it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    serving: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Proxy {
    /// Listens on a port of its own of the loopback and passes everything on.
    ///
    /// # Errors
    /// There is no port to be had.
    pub async fn start(server: SocketAddr) -> std::io::Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), server).await
    }

    /// As [`Proxy::start`], on another address of this host.
    ///
    /// # Errors
    /// The address is not this host's, or there is no port to be had.
    pub async fn start_at(host: IpAddr, server: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind((host, 0)).await?;
        let address = listener.local_addr()?;
        let (mode, follow) = watch::channel(Mode::Pass);
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Some(_) = connections.join_next() => {}
                    accepted = listener.accept() => {
                        if let Ok((client, _)) = accepted {
                            connections.spawn(serve(client, server, follow.clone()));
                        }
                    }
                }
            }
        });
        Ok(Self { address, mode, serving })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn serve(client: TcpStream, server: SocketAddr, mut mode: watch::Receiver<Mode>) {
    if *mode.borrow() == Mode::Cut {
        return;
    }
    let Ok(Ok(server)) = tokio::time::timeout(CONNECT, TcpStream::connect(server)).await else { return };
    // Either may be gone already.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = pass(from_client, to_server, mode.clone(), &[Mode::Pass, Mode::NoAnswers]) => {}
        () = pass(from_server, to_client, mode.clone(), &[Mode::Pass]) => {}
        // Fails with the proxy, which ends this task too.
        _ = mode.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

/// Passes bytes on while the mode is one of these.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    passing: &[Mode],
) {
    let mut buffer = vec![0; BUFFER];
    loop {
        if mode.wait_for(|mode| passing.contains(mode)).await.is_err() {
            return;
        }
        let length = tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(length) if length > 0 => length,
                _ => return,
            },
            changed = mode.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        // What was read while the mode changed waits with the rest.
        if mode.wait_for(|mode| passing.contains(mode)).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each byte with the next one.
    async fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    while let Ok(byte) = client.read_u8().await {
                        client.write_u8(byte + 1).await.unwrap();
                    }
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn it_passes_holds_and_cuts_as_it_is_told() {
        let proxy = Proxy::start(server().await).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        client.write_u8(1).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), 2);

        for mode in [Mode::Silent, Mode::NoAnswers] {
            proxy.set(mode);
            client.write_u8(10).await.unwrap();
            let answer = tokio::time::timeout(Duration::from_millis(100), client.read_u8()).await;
            assert!(answer.is_err(), "{mode:?} let it through");
            // Late, not lost.
            proxy.set(Mode::Pass);
            assert_eq!(client.read_u8().await.unwrap(), 11);
        }

        proxy.set(Mode::Cut);
        assert!(client.read_u8().await.is_err());
        let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(refused.read_u8().await.is_err());
        proxy.set(Mode::Pass);
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        client.write_u8(5).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), 6);
    }
}
