//! Each worker on a host of its own: network namespaces behind one bridge, for root on Linux (`ip-netns(8)`).

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, bail};
use tokio::process::Command;

/// The bridge, and what the names of everything else begin with.
const BRIDGE: &str = "millrace";
/// Of no network that a machine would be in by itself (RFC 2544's addresses for tests of devices).
const NETWORK: [u8; 3] = [198, 18, 77];

/// Hosts beside this one; they are gone with it.
pub(crate) struct Hosts {
    count: usize,
}

impl Hosts {
    /// Makes so many, in place of any that were left.
    pub(crate) async fn make(count: usize) -> anyhow::Result<Self> {
        let hosts = Self { count };
        hosts.remove();
        let here = format!("{}/24", hosts.here());
        ip(&["link", "add", BRIDGE, "type", "bridge"])
            .await
            .context("several hosts take root and network namespaces")?;
        ip(&["address", "add", &here, "dev", BRIDGE]).await?;
        ip(&["link", "set", BRIDGE, "up"]).await?;
        for which in 0..count {
            let (host, cable) = (hosts.name(which), hosts.cable(which));
            let inside = format!("{host}i");
            ip(&["netns", "add", &host]).await?;
            ip(&["link", "add", &cable, "type", "veth", "peer", "name", &inside]).await?;
            ip(&["link", "set", &inside, "netns", &host]).await?;
            ip(&["link", "set", &cable, "master", BRIDGE, "up"]).await?;
            let address = format!("{}/24", address(which));
            ip(&["-n", &host, "address", "add", &address, "dev", &inside]).await?;
            ip(&["-n", &host, "link", "set", &inside, "up"]).await?;
            ip(&["-n", &host, "link", "set", "lo", "up"]).await?;
        }
        Ok(hosts)
    }

    /// This host, as the others reach it.
    pub(crate) fn here(&self) -> IpAddr {
        let [a, b, c] = NETWORK;
        Ipv4Addr::new(a, b, c, 1).into()
    }

    /// A host's network namespace.
    pub(crate) fn name(&self, which: usize) -> String {
        format!("{BRIDGE}{which}")
    }

    fn cable(&self, which: usize) -> String {
        format!("{BRIDGE}{which}o")
    }

    /// Pulls its cable.
    pub(crate) async fn unplug(&self, which: usize) -> anyhow::Result<()> {
        ip(&["link", "set", &self.cable(which), "down"]).await
    }

    /// Plugs it in again.
    pub(crate) async fn plug_in(&self, which: usize) -> anyhow::Result<()> {
        ip(&["link", "set", &self.cable(which), "up"]).await
    }

    /// What it sends is dropped.
    pub(crate) async fn mute(&self, which: usize) -> anyhow::Result<()> {
        ip(&["-n", &self.name(which), "route", "add", "blackhole", &self.here().to_string()]).await
    }

    /// What it sends arrives again.
    pub(crate) async fn unmute(&self, which: usize) -> anyhow::Result<()> {
        ip(&["-n", &self.name(which), "route", "delete", "blackhole", &self.here().to_string()]).await
    }

    /// What is sent to it is dropped.
    pub(crate) async fn deafen(&self, which: usize) -> anyhow::Result<()> {
        ip(&["route", "add", "blackhole", &address(which).to_string()]).await
    }

    /// What is sent to it arrives again.
    pub(crate) async fn undeafen(&self, which: usize) -> anyhow::Result<()> {
        ip(&["route", "delete", "blackhole", &address(which).to_string()]).await
    }

    /// Removes whatever there is; a namespace takes its end of the cable with it, and the bridge its address.
    fn remove(&self) {
        let run = |arguments: &[&str]| {
            let mut command = std::process::Command::new("ip");
            // What is not there cannot be removed.
            let _ = command.args(arguments).stderr(std::process::Stdio::null()).status();
        };
        for which in 0..self.count {
            run(&["route", "delete", "blackhole", &address(which).to_string()]);
            run(&["netns", "delete", &self.name(which)]);
            run(&["link", "delete", &self.cable(which)]);
        }
        run(&["link", "delete", BRIDGE]);
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.remove();
    }
}

fn address(which: usize) -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, 10 + u8::try_from(which).unwrap_or(0))
}

async fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output().await.context("`ip` of iproute2 is needed")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
