//! Configuration of the two services: flags and `MILLRACE_*` variables win over the file, the file over the defaults.
//! `deploy/config` holds commented examples.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::Args;
use millrace_catalog::Location;
use millrace_model::{Labels, WorkerId};
use millrace_telemetry::LogFormat;
use serde::Deserialize;
use serde::de::DeserializeOwned;

const DEFAULT_LISTEN: &str = "127.0.0.1:7400";
const DEFAULT_MAX_TASKS: u32 = 4;
const DEFAULT_MEMORY_BUDGET: &str = "256MiB";

/// What `millrace coordinator` is told.
#[derive(Args, Debug, Default)]
pub(crate) struct CoordinatorArgs {
    /// Configuration file (TOML).
    #[arg(long, env = "MILLRACE_CONFIG")]
    config: Option<PathBuf>,
    /// Address to serve on [default: 127.0.0.1:7400].
    #[arg(long, env = "MILLRACE_LISTEN")]
    listen: Option<SocketAddr>,
    /// Where the catalog is kept [default: ./millrace-data].
    #[arg(long, env = "MILLRACE_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// postgresql://user:password@host:port/database, for several coordinators [default: the file catalog.sqlite in the data directory]. Flags are seen in lists of processes: a password is better kept in
    /// the variable or the configuration file.
    #[arg(long, env = "MILLRACE_CATALOG", hide_env_values = true)]
    catalog: Option<String>,
    /// Where other coordinators and workers reach this one, http://host:port [default: the address that it serves on].
    #[arg(long, env = "MILLRACE_ADVERTISE")]
    advertise: Option<String>,
    /// Serve beyond this machine although nothing is encrypted and nobody is asked who he is.
    #[arg(long, env = "MILLRACE_INSECURE")]
    insecure: bool,
    #[command(flatten)]
    telemetry: TelemetryArgs,
}

/// What `millrace worker` is told.
#[derive(Args, Debug, Default)]
pub(crate) struct WorkerArgs {
    /// Configuration file (TOML).
    #[arg(long, env = "MILLRACE_CONFIG")]
    config: Option<PathBuf>,
    /// Coordinators, http://host:port, separated by commas [default: http://127.0.0.1:7400].
    #[arg(long = "coordinator", env = "MILLRACE_COORDINATORS", value_delimiter = ',')]
    coordinators: Vec<String>,
    /// This worker's id, unique in the fleet [default: host name and process id].
    #[arg(long, env = "MILLRACE_WORKER_ID")]
    id: Option<WorkerId>,
    /// Most copies at a time; streams are not counted [default: 4].
    #[arg(long, env = "MILLRACE_MAX_TASKS")]
    max_tasks: Option<u32>,
    /// Ceiling of the memory that data may take, such as 256MiB [default: 256MiB].
    #[arg(long, env = "MILLRACE_MEMORY_BUDGET")]
    memory_budget: Option<ByteSize>,
    /// Where it is and whom it serves, such as zone=a,pool=large; pipes choose by workerSelector.
    #[arg(long, env = "MILLRACE_LABELS")]
    labels: Option<Labels>,
    #[command(flatten)]
    telemetry: TelemetryArgs,
}

#[derive(Args, Debug, Default)]
struct TelemetryArgs {
    /// OTLP/gRPC endpoint of a collector, http://host:4317; nothing is exported without one.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// text or json [default: text].
    #[arg(long, env = "MILLRACE_LOG_FORMAT")]
    log_format: Option<LogFormat>,
    /// What is logged, such as info,millrace_worker=debug [default: info].
    #[arg(long, env = "MILLRACE_LOG")]
    log_filter: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct CoordinatorFile {
    listen: Option<SocketAddr>,
    data_dir: Option<PathBuf>,
    catalog: Option<String>,
    advertise: Option<String>,
    insecure: Option<bool>,
    #[serde(default)]
    telemetry: TelemetryFile,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct WorkerFile {
    coordinators: Option<Vec<String>>,
    id: Option<String>,
    max_tasks: Option<u32>,
    memory_budget: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    telemetry: TelemetryFile,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct TelemetryFile {
    otlp_endpoint: Option<String>,
    log_format: Option<LogFormat>,
    log_filter: Option<String>,
}

/// A coordinator, ready to be started.
#[derive(Debug)]
pub(crate) struct CoordinatorConfig {
    pub(crate) listen: SocketAddr,
    pub(crate) catalog: Location,
    pub(crate) advertise: Option<String>,
    pub(crate) telemetry: millrace_telemetry::Config,
}

/// A worker, ready to be started.
#[derive(Debug)]
pub(crate) struct WorkerConfig {
    pub(crate) worker: millrace_worker::Config,
    pub(crate) telemetry: millrace_telemetry::Config,
}

impl CoordinatorArgs {
    /// Reads the file and settles every value.
    pub(crate) fn resolve(self) -> anyhow::Result<CoordinatorConfig> {
        let file: CoordinatorFile = read(self.config.as_deref())?;
        let default = || DEFAULT_LISTEN.parse().context("the default address is not one");
        let listen = self.listen.or(file.listen).map_or_else(default, Ok)?;
        check_listen(listen, self.insecure || file.insecure.unwrap_or(false))?;
        let data_dir = self.data_dir.or(file.data_dir).unwrap_or_else(|| PathBuf::from("millrace-data"));
        let catalog = match self.catalog.or(file.catalog) {
            Some(named) => Location::new(&named),
            None => catalog_file(&data_dir),
        };
        let advertise = self.advertise.or(file.advertise);
        check_advertise(advertise.as_deref(), listen, &catalog)?;
        Ok(CoordinatorConfig {
            listen,
            catalog,
            advertise,
            telemetry: self.telemetry.resolve(file.telemetry, "millrace-coordinator"),
        })
    }
}

/// Until calls are encrypted and authenticated, serving others is something to ask for.
pub(crate) fn check_listen(listen: SocketAddr, insecure: bool) -> anyhow::Result<()> {
    if !listen.ip().is_loopback() && !insecure {
        bail!(
            "{listen} can be reached from other machines, and calls are neither encrypted nor authenticated; \
             listen on 127.0.0.1, or pass --insecure if the network is trusted"
        );
    }
    Ok(())
}

/// The catalog in a data directory.
pub(crate) fn catalog_file(data_dir: &Path) -> Location {
    Location::File(data_dir.join("catalog.sqlite"))
}

fn check_advertise(advertise: Option<&str>, listen: SocketAddr, catalog: &Location) -> anyhow::Result<()> {
    match advertise {
        Some(address) if !address.starts_with("http://") => {
            bail!("advertise = '{address}': write http://host:port")
        }
        None if catalog.is_shared() && listen.ip().is_unspecified() => bail!(
            "{listen} is every address of this machine, so other coordinators and workers cannot be told where to find it; \
             name the one that they reach with --advertise http://host:port"
        ),
        _ => Ok(()),
    }
}

impl WorkerArgs {
    /// Reads the file and settles every value.
    pub(crate) fn resolve(self) -> anyhow::Result<WorkerConfig> {
        let file: WorkerFile = read(self.config.as_deref())?;
        let coordinators = match (self.coordinators, file.coordinators) {
            (given, _) if !given.is_empty() => given,
            (_, Some(listed)) if !listed.is_empty() => listed,
            _ => vec![format!("http://{DEFAULT_LISTEN}")],
        };
        for address in &coordinators {
            if !address.starts_with("http://") {
                bail!("coordinator '{address}': write http://host:port");
            }
        }
        let id = match (self.id, file.id) {
            (Some(id), _) => id,
            (None, Some(id)) => id.parse().with_context(|| format!("id = \"{id}\""))?,
            (None, None) => default_id()?,
        };
        let max_tasks = self.max_tasks.or(file.max_tasks).unwrap_or(DEFAULT_MAX_TASKS);
        if max_tasks == 0 {
            bail!("max_tasks is 0, so the worker would do nothing; give it at least 1");
        }
        let memory_budget = match (self.memory_budget, file.memory_budget) {
            (Some(budget), _) => budget,
            (None, Some(text)) => text.parse().context("memory_budget")?,
            (None, None) => DEFAULT_MEMORY_BUDGET.parse()?,
        };
        let telemetry = millrace_telemetry::Config {
            instance_id: Some(id.to_string()),
            ..self.telemetry.resolve(file.telemetry, "millrace-worker")
        };
        let labels = match self.labels {
            Some(labels) => labels,
            None => Labels::new(file.labels.unwrap_or_default()).context("labels")?,
        };
        let memory_budget = memory_budget.0;
        let worker = millrace_worker::Config { coordinators, id, max_tasks, memory_budget, labels };
        Ok(WorkerConfig { worker, telemetry })
    }
}

fn default_id() -> anyhow::Result<WorkerId> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().take(40).collect();
    let host = if host.is_empty() { "worker" } else { &host };
    format!("{host}-{}", std::process::id()).parse().context("no id can be made of the host name; pass --id")
}

impl TelemetryArgs {
    fn resolve(self, file: TelemetryFile, service: &str) -> millrace_telemetry::Config {
        let default = millrace_telemetry::Config::new(service);
        millrace_telemetry::Config {
            otlp_endpoint: self.otlp_endpoint.or(file.otlp_endpoint),
            log_format: self.log_format.or(file.log_format).unwrap_or_default(),
            log_filter: self.log_filter.or(file.log_filter).unwrap_or(default.log_filter.clone()),
            ..default
        }
    }
}

fn read<T: DeserializeOwned + Default>(path: Option<&Path>) -> anyhow::Result<T> {
    let Some(path) = path else { return Ok(T::default()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not a valid configuration", path.display()))
}

/// A number of bytes, written as `4096`, `256MiB`, `1GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

impl FromStr for ByteSize {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit: u64 = match &text[digits.len()..] {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            other => bail!("'{other}' is not a unit of size; use B, KiB, MiB or GiB"),
        };
        let number: u64 =
            digits.trim().parse().with_context(|| format!("'{text}' is not a size, such as 256MiB"))?;
        number.checked_mul(unit).map(Self).with_context(|| format!("'{text}' is more than can be counted"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_defaults() {
        let file =
            file("max_tasks = 7\nid = \"from-file\"\nlabels = {zone = \"a\"}\nmemory_budget = \"64MiB\"\n");
        let arguments = WorkerArgs {
            config: Some(file.path().into()),
            id: Some("from-flag".parse().unwrap()),
            ..WorkerArgs::default()
        };
        let worker = arguments.resolve().unwrap().worker;
        assert_eq!((worker.id.as_str(), worker.max_tasks, worker.memory_budget), ("from-flag", 7, 64 << 20));
        assert_eq!(worker.coordinators, ["http://127.0.0.1:7400"]);
    }

    #[test]
    fn a_coordinator_that_others_look_for_says_where_it_is() {
        let arguments = |advertise: Option<&str>, listen: &str| CoordinatorArgs {
            listen: Some(listen.parse().unwrap()),
            catalog: Some("postgresql://millrace:hunter2@db/millrace".to_owned()),
            advertise: advertise.map(str::to_owned),
            insecure: true,
            ..CoordinatorArgs::default()
        };
        let config = arguments(None, "127.0.0.1:0").resolve().unwrap();
        assert_eq!(config.catalog.to_string(), "postgresql://db:5432/millrace");
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(arguments(Some("http://c0:7400"), "0.0.0.0:7400").resolve().is_ok());
        let refused = arguments(None, "0.0.0.0:7400").resolve().unwrap_err().to_string();
        assert!(refused.contains("--advertise"), "{refused}");
        assert!(arguments(Some("c0:7400"), "127.0.0.1:0").resolve().is_err());
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let file = file("listem = \"127.0.0.1:1\"\n");
        let arguments = CoordinatorArgs { config: Some(file.path().into()), ..CoordinatorArgs::default() };
        assert!(format!("{:#}", arguments.resolve().unwrap_err()).contains("listem"));
    }

    #[test]
    fn listening_beyond_this_machine_must_be_asked_for() {
        let public: SocketAddr = "0.0.0.0:7400".parse().unwrap();
        assert!(check_listen(public, false).is_err());
        assert!(check_listen(public, true).is_ok());
        assert!(check_listen("127.0.0.1:7400".parse().unwrap(), false).is_ok());
    }

    #[test]
    fn sizes_have_units() {
        let size = |text: &str| text.parse::<ByteSize>().map(|size| size.0).ok();
        assert_eq!(size("256MiB"), Some(256 << 20));
        assert_eq!(size("4096"), Some(4096));
        for wrong in ["", "MiB", "12MB", "-1", "99999999999GiB"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_example_files_are_valid() {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config");
        let config = |name: &str| Some(deploy.join(name));
        CoordinatorArgs { config: config("coordinator.toml"), ..CoordinatorArgs::default() }
            .resolve()
            .unwrap();
        WorkerArgs { config: config("worker.toml"), ..WorkerArgs::default() }.resolve().unwrap();
    }
}
