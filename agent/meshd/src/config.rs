//! Where an instance keeps its things: defaults, then `/etc/mesh/meshd.toml`, then flags.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use mesh_kernel::programs::MapSizes;
use mesh_model::InterfacePatterns;
use mesh_reconciler::XdpPolicy;
use serde::Deserialize;

/// The file that is read when `--config` names none; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/mesh/meshd.toml";

/// How many entries a map may have whose size can be set.
const ENTRIES: RangeInclusive<u32> = 1024..=1 << 28;

/// How packets of clear networks are to be wrapped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EncapsulationChoice {
    /// Direct if the kernel supports it, which is tested at start; otherwise device.
    #[default]
    Auto,
    /// The eBPF programs write the outer headers.
    Direct,
    /// The kernel's VXLAN device writes them.
    Device,
}

/// Whether packets of published ports that only pass through are sent on by the data-path device's
/// driver (XDP).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum XdpChoice {
    /// Never.
    #[default]
    Off,
    /// If the device is a network card whose driver supports it at little cost to other traffic.
    Auto,
    /// Always; `meshctl status` reports a problem if the driver does not support it.
    Native,
}

impl From<XdpChoice> for XdpPolicy {
    fn from(choice: XdpChoice) -> Self {
        match choice {
            XdpChoice::Off => Self::Off,
            XdpChoice::Auto => Self::Auto,
            XdpChoice::Native => Self::Native,
        }
    }
}

/// What is to carry encrypted networks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WireguardEngine {
    /// The kernel's WireGuard if a test shows that it works, otherwise the engine in user space.
    #[default]
    Automatic,
    /// Only the kernel's WireGuard.
    Kernel,
    /// Only the engine in user space, which needs TUN.
    Userspace,
}

/// A time as the file has it: a number and `h` (hours) or `d` (days).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Interval(Duration);

impl TryFrom<String> for Interval {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let refused =
            || format!("{text:?} is no interval: a number of hours or days, such as \"24h\" or \"30d\"");
        let (number, hours) = match text.strip_suffix('d') {
            Some(days) => (days, 24),
            None => (text.strip_suffix('h').ok_or_else(refused)?, 1),
        };
        match number.parse::<u32>() {
            Ok(number @ 1..=100_000) => Ok(Self(Duration::from_hours(u64::from(number) * hours))),
            _ => Err(refused()),
        }
    }
}

/// Where the metrics are served: an address of this host and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct MetricsAddress(SocketAddr);

impl MetricsAddress {
    /// The address and the port, which is not 0.
    pub fn socket_addr(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(Self(address)),
            _ => {
                Err(format!("{text:?} is no address and port, such as \"127.0.0.1:7380\" or \"[::1]:7380\""))
            }
        }
    }
}

impl TryFrom<String> for MetricsAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Run the Mesh agent of this host
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "meshd", version, after_help = "Example: meshd --config /etc/mesh/meshd.toml")]
pub struct Flags {
    /// Configuration file [default: /etc/mesh/meshd.toml if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of state that survives a reboot [default: /var/lib/mesh]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory of the socket and other volatile state [default: /run/mesh]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Unix socket for meshctl [default: meshd.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Directory in bpffs where eBPF programs and maps are pinned [default: /sys/fs/bpf/mesh]
    #[arg(long, value_name = "DIR")]
    pub bpffs_dir: Option<PathBuf>,
    /// Encapsulation of packets of clear networks [default: auto]
    #[arg(long, value_enum)]
    pub encapsulation: Option<EncapsulationChoice>,
    /// Forward packets of published ports in the network card's driver (XDP) [default: off]
    #[arg(long, value_enum)]
    pub xdp: Option<XdpChoice>,
    /// File with the resolvers for names outside the mesh (resolv.conf format) [default:
    /// /etc/resolv.conf]
    #[arg(long, value_name = "FILE")]
    pub resolv_conf: Option<PathBuf>,
    /// WireGuard engine for encrypted networks [default: automatic]
    #[arg(long, value_enum)]
    pub wireguard_engine: Option<WireguardEngine>,
    /// UDP port of WireGuard on this host [default: 51820]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub wireguard_port: Option<u16>,
    /// Address and port of the metrics server (HTTP, no authentication) [default: no server]
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_addr: Option<MetricsAddress>,
    /// Log level for standard error, or tracing directives [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

/// The file's keys; all may be absent.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    state_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    bpffs_dir: Option<PathBuf>,
    encapsulation: Option<EncapsulationChoice>,
    xdp: Option<XdpChoice>,
    resolv_conf: Option<PathBuf>,
    publish_interfaces: Option<InterfacePatterns>,
    service_table_entries: Option<u32>,
    connection_entries: Option<u32>,
    wireguard_engine: Option<WireguardEngine>,
    wireguard_port: Option<NonZeroU16>,
    rotate_keys: Option<Interval>,
    metrics_addr: Option<MetricsAddress>,
    log: Option<String>,
}

/// One instance's settings, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// State that survives a reboot.
    pub state_dir: PathBuf,
    /// State that does not.
    pub run_dir: PathBuf,
    /// The local socket.
    pub socket: PathBuf,
    /// Pins of programs, maps and links.
    pub bpffs_dir: PathBuf,
    /// How packets are wrapped.
    pub encapsulation: EncapsulationChoice,
    /// Whether the data-path device's driver sends on what only passes through.
    pub xdp: XdpChoice,
    /// Names the resolvers of all names that are none of the mesh's (resolv.conf(5)).
    pub resolv_conf: PathBuf,
    /// The host's interfaces that answer published ports; all of them unless set.
    pub publish_interfaces: InterfacePatterns,
    /// Entries of all services' tables of backends, in all, of four bytes each, to begin with:
    /// there will be as many as services take.
    pub service_table_entries: u32,
    /// Balanced flows that are remembered. Maps that exist keep their size.
    pub connection_entries: Option<u32>,
    /// What carries encrypted networks.
    pub wireguard_engine: WireguardEngine,
    /// UDP port of WireGuard.
    pub wireguard_port: u16,
    /// On a manager: interval after which all nodes create new keys; `None`: only on demand.
    pub rotate_keys: Option<Duration>,
    /// Where metrics are served over HTTP; `None`: nowhere.
    pub metrics_addr: Option<MetricsAddress>,
    /// Filter of the log.
    pub log: String,
}

impl Config {
    /// The socket of the CNI plugin.
    pub fn cni_socket(&self) -> PathBuf {
        self.run_dir.join("cni.sock")
    }
}

/// Why there is no valid configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named, or one that exists, cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file's content is wrong: syntax, an unknown key, or a value of the wrong kind.
    #[error("configuration file {}, line {line}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Line of the fault, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A directory that is given relative to nothing in particular.
    #[error("{key} {}: must be an absolute path", path.display())]
    Relative {
        /// Which setting.
        key: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A map of no use, or one that no host has room for.
    #[error("{key} {entries}: must be {} to {}", ENTRIES.start(), ENTRIES.end())]
    Entries {
        /// Which setting.
        key: &'static str,
        /// Its value.
        entries: u32,
    },
    /// The log's filter is not understood.
    #[error("log {filter:?}: {reason}")]
    Log {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Config {
    /// Reads the file and lays the flags over it.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => read(path)?,
            None => match read(Path::new(DEFAULT_FILE)) {
                Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    File::default()
                }
                other => other?,
            },
        };
        Self::merge(flags, file)
    }

    fn merge(flags: &Flags, file: File) -> Result<Self, ConfigError> {
        let pick = |flag: &Option<PathBuf>, key: Option<PathBuf>, default: PathBuf| {
            flag.clone().or(key).unwrap_or(default)
        };
        let sizes = MapSizes::default();
        let run_dir = pick(&flags.run_dir, file.run_dir, "/run/mesh".into());
        let config = Self {
            state_dir: pick(&flags.state_dir, file.state_dir, "/var/lib/mesh".into()),
            socket: pick(&flags.socket, file.socket, run_dir.join("meshd.sock")),
            run_dir,
            bpffs_dir: pick(&flags.bpffs_dir, file.bpffs_dir, "/sys/fs/bpf/mesh".into()),
            encapsulation: flags.encapsulation.or(file.encapsulation).unwrap_or_default(),
            xdp: flags.xdp.or(file.xdp).unwrap_or_default(),
            resolv_conf: pick(&flags.resolv_conf, file.resolv_conf, "/etc/resolv.conf".into()),
            publish_interfaces: file.publish_interfaces.unwrap_or_default(),
            service_table_entries: file.service_table_entries.unwrap_or(sizes.backend_tables),
            connection_entries: file.connection_entries,
            wireguard_engine: flags.wireguard_engine.or(file.wireguard_engine).unwrap_or_default(),
            wireguard_port: flags
                .wireguard_port
                .or(file.wireguard_port.map(NonZeroU16::get))
                .unwrap_or(mesh_model::wireguard::DEFAULT_PORT),
            rotate_keys: file.rotate_keys.map(|interval| interval.0),
            metrics_addr: flags.metrics_addr.or(file.metrics_addr),
            log: flags.log.clone().or(file.log).unwrap_or_else(|| "info".to_owned()),
        };
        for (key, path) in [
            ("state_dir", &config.state_dir),
            ("run_dir", &config.run_dir),
            ("socket", &config.socket),
            ("bpffs_dir", &config.bpffs_dir),
            ("resolv_conf", &config.resolv_conf),
        ] {
            if !path.is_absolute() {
                return Err(ConfigError::Relative { key, path: path.clone() });
            }
        }
        for (key, entries) in [
            ("service_table_entries", Some(config.service_table_entries)),
            ("connection_entries", config.connection_entries),
        ] {
            if let Some(entries) = entries.filter(|entries| !ENTRIES.contains(entries)) {
                return Err(ConfigError::Entries { key, entries });
            }
        }
        Ok(config)
    }
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        ConfigError::Content {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            message: error.message().replace('\n', " "),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, flags: &[&str]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meshd.toml");
        std::fs::write(&path, text).unwrap();
        let mut flags = Flags::try_parse_from([&["meshd"], flags].concat()).unwrap();
        flags.config = Some(path);
        Config::load(&flags)
    }

    const EXAMPLE: &str = include_str!("../../../docs/examples/meshd.toml");

    #[test]
    fn the_example_file_is_valid_and_has_every_key_once() {
        load(EXAMPLE, &[]).unwrap();
        let file: File = toml::from_str(EXAMPLE).unwrap();
        // A new key is missing here until it is also in the example.
        let File {
            state_dir: Some(_),
            run_dir: Some(_),
            socket: Some(_),
            bpffs_dir: Some(_),
            encapsulation: Some(_),
            xdp: Some(_),
            resolv_conf: Some(_),
            publish_interfaces: Some(_),
            service_table_entries: Some(_),
            connection_entries: Some(_),
            wireguard_engine: Some(_),
            wireguard_port: Some(_),
            rotate_keys: Some(_),
            metrics_addr: Some(_),
            log: Some(_),
        } = file
        else {
            panic!("docs/examples/meshd.toml lacks a key: {file:?}");
        };
    }

    #[test]
    fn the_defaults_in_the_example_file_are_the_defaults() {
        let (defaults, _) = EXAMPLE.split_once("# --- Keys without a fixed default").unwrap();
        assert_eq!(load(defaults, &[]).unwrap(), load("", &[]).unwrap());
    }

    #[test]
    fn the_reference_describes_every_key_of_the_example_file() {
        let page = include_str!("../../../docs/reference/meshd-toml.md");
        let table: toml::Table = EXAMPLE.parse().unwrap();
        let described: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        let mut keys: Vec<&str> = table.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(
            {
                let mut sorted = described.clone();
                sorted.sort_unstable();
                sorted
            },
            keys
        );
        for key in keys {
            assert!(page.contains(&format!("| [`{key}`](#{key}) |")), "{key} is not in the table");
        }
    }

    #[test]
    fn an_empty_file_leaves_the_documented_defaults() {
        let config = load("", &[]).unwrap();
        assert_eq!(config.state_dir, Path::new("/var/lib/mesh"));
        assert_eq!(config.socket, Path::new("/run/mesh/meshd.sock"));
        assert_eq!(config.bpffs_dir, Path::new("/sys/fs/bpf/mesh"));
        assert_eq!(config.encapsulation, EncapsulationChoice::Auto);
        assert_eq!(config.xdp, XdpChoice::Off);
        assert_eq!(config.log, "info");
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_socket_follows_the_run_directory() {
        let config = load(
            "run_dir = '/a'\nencapsulation = 'direct'",
            &["--run-dir", "/b", "--encapsulation", "device"],
        )
        .unwrap();
        assert_eq!(config.socket, Path::new("/b/meshd.sock"));
        assert_eq!(config.encapsulation, EncapsulationChoice::Device);
    }

    #[test]
    fn an_unknown_key_is_named_with_file_and_line() {
        let error = load("log = 'debug'\nstat_dir = '/x'\n", &[]).unwrap_err().to_string();
        assert!(error.contains("meshd.toml, line 2") && error.contains("`stat_dir`"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_one_line() {
        let error = load("encapsulation = 'fast'", &[]).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("fast") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn sizes_of_maps_are_bounded() {
        assert_eq!(load("connection_entries = 4096", &[]).unwrap().connection_entries, Some(4096));
        let error = load("service_table_entries = 5", &[]).unwrap_err().to_string();
        assert!(error.contains("service_table_entries 5: must be 1024 to"), "{error}");
    }

    #[test]
    fn interfaces_that_answer_published_ports_are_chosen_by_patterns() {
        let includes = |text: &str, name: &str| {
            load(text, &[]).unwrap().publish_interfaces.include(&name.parse().unwrap())
        };
        assert!(includes("", "eth1") && includes("publish_interfaces = ['!docker*']", "eth1"));
        assert!(!includes("publish_interfaces = ['eth*', '!eth1']", "eth1"));
        for (wrong, why) in [("[]", "empty"), ("['a b']", "matches no interface"), ("'eth0'", "sequence")] {
            let error = load(&format!("publish_interfaces = {wrong}"), &[]).unwrap_err().to_string();
            assert!(error.contains("line 1") && error.contains(why), "{error}");
        }
    }

    #[test]
    fn metrics_are_served_nowhere_unless_an_address_with_a_port_is_given() {
        assert_eq!(load("", &[]).unwrap().metrics_addr, None);
        let served =
            |text: &str, flags: &[&str]| load(text, flags).unwrap().metrics_addr.unwrap().0.to_string();
        assert_eq!(served("metrics_addr = '127.0.0.1:7380'", &[]), "127.0.0.1:7380");
        assert_eq!(served("metrics_addr = '127.0.0.1:7380'", &["--metrics-addr", "[::1]:9"]), "[::1]:9");
        for wrong in ["7380", "127.0.0.1", ":7380", "localhost:7380", "127.0.0.1:0", "127.0.0.1:70000", ""] {
            let error =
                load(&format!("log = 'info'\nmetrics_addr = '{wrong}'"), &[]).unwrap_err().to_string();
            assert!(error.contains("line 2: ") && error.contains("is no address and port"), "{error}");
            assert!(Flags::try_parse_from(["meshd", "--metrics-addr", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_relative_directory_is_refused() {
        assert!(load("", &["--state-dir", "state"]).unwrap_err().to_string().contains("state_dir state"));
    }

    #[test]
    fn a_file_that_was_named_must_exist() {
        let flags = Flags { config: Some("/nonexistent/meshd.toml".into()), ..Flags::default() };
        assert!(matches!(Config::load(&flags), Err(ConfigError::Read { .. })));
    }
}
