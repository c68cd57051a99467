//! The `mesh-lab` command: a lab that outlives the command that made it.

use std::time::Instant;

use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    Cmd, Encapsulation, Error, Lab, Output, ProcessId, Result, demo,
    traffic::{ServerProcess, WebServer},
};

/// Run hosts with a real meshd in network namespaces of this machine.
#[derive(Debug, Parser)]
#[command(name = "mesh-lab", bin_name = "./dev lab", version)]
pub struct Cli {
    /// Prefix of everything in the lab; labs with different ones run side by side
    #[arg(long, default_value = "ml", global = true)]
    prefix: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a lab; every host has joined and is ready when this returns
    Up {
        /// Number of hosts
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=189))]
        hosts: u8,
        /// MTU of the underlay's devices, bytes
        #[arg(long, default_value_t = 1500, value_name = "M", value_parser = clap::value_parser!(u32).range(576..=65535))]
        underlay_mtu: u32,
        /// Give the machines IPv6 addresses too: `fd77::11` and so on
        #[arg(long)]
        underlay_ipv6: bool,
        /// Give hosts a second device on a network of its own, with an outside client: 10.99.0.1
        /// and so on
        #[arg(long)]
        second_nic: bool,
        /// Encapsulation of every meshd
        #[arg(long)]
        encapsulation: Option<Encapsulation>,
        /// WireGuard engine of every meshd: automatic, kernel or userspace
        #[arg(long, default_value = "automatic", value_name = "ENGINE")]
        wireguard_engine: String,
    },
    /// Remove the whole lab; succeeds if the lab is not up
    Down {
        /// Remove instead the labs of tests and benchmarks that were ended before they could
        #[arg(long)]
        abandoned: bool,
    },
    /// Show hosts and containers
    Status {
        /// Output format
        #[arg(long, default_value = "table")]
        format: Format,
    },
    /// Kill a host's meshd with SIGKILL
    Kill {
        /// The host: h1, h2, ...
        host: String,
    },
    /// Start a host's meshd again with the same state directory
    Restart {
        /// The host
        host: String,
    },
    /// Take a host off the underlay: a dead or cut-off machine
    Unplug {
        /// The host
        host: String,
    },
    /// Put a host back on the underlay
    Plug {
        /// The host
        host: String,
    },
    /// Run a command as if logged in on a host; meshctl finds its meshd
    Run {
        /// The host
        host: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Create a network namespace and attach it on a host
    Container {
        /// The host
        host: String,
        /// Name of the container and of its endpoint
        name: String,
        /// Options of `meshctl endpoint attach`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
        options: Vec<String>,
    },
    /// Run a command inside a container, or on the outside machine `client`
    Exec {
        /// The container
        name: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Start a web server in a container that answers its name and the client, over TCP and UDP
    Serve {
        /// The container
        name: String,
        /// Port that it listens on
        #[arg(default_value_t = 80)]
        port: u16,
    },
    /// What `serve` runs: a web server in the caller's namespace
    #[command(hide = true)]
    Web {
        /// The name that it answers
        name: String,
        /// Port that it listens on
        port: u16,
    },
    /// Show what Mesh does, step by step, in a lab of its own
    #[command(hide = true)]
    Demo {
        /// Leave the lab up at the end
        #[arg(long)]
        keep: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
}

impl Cli {
    /// Does what was asked; the exit code of what was run, or 0.
    pub fn run(self) -> Result<u8> {
        let open = || Lab::open(&self.prefix);
        match self.command {
            Command::Up {
                hosts,
                underlay_mtu,
                underlay_ipv6,
                second_nic,
                encapsulation,
                wireguard_engine,
            } => {
                let begin = Instant::now();
                let mut builder = Lab::builder()
                    .prefix(&self.prefix)
                    .hosts(hosts)
                    .underlay_mtu(underlay_mtu)
                    .underlay_ipv6(underlay_ipv6)
                    .second_nic(second_nic)
                    .wireguard_engine(wireguard_engine);
                if let Some(encapsulation) = encapsulation {
                    builder = builder.encapsulation(encapsulation);
                }
                let lab = builder.start()?.keep();
                println!(
                    "lab {}: {hosts} hosts ready in {:.1} s",
                    self.prefix,
                    begin.elapsed().as_secs_f64()
                );
                print_table(&lab)?;
            }
            Command::Down { abandoned: false } => Lab::down(&self.prefix)?,
            Command::Down { abandoned: true } => Lab::down_abandoned(),
            Command::Status { format: Format::Table } => print_table(&open()?)?,
            Command::Status { format: Format::Json } => println!("{}", status_json(&open()?)?),
            Command::Kill { host } => {
                let host = open()?.host_named(&host)?;
                let meshd = host.meshd();
                host.kill_meshd()?;
                match meshd {
                    Some(ProcessId { pid, .. }) => println!("{}: meshd (pid {pid}) killed", host.name()),
                    None => println!("{}: meshd does not run", host.name()),
                }
            }
            Command::Restart { host } => {
                let host = open()?.host_named(&host)?;
                host.restart_meshd()?;
                println!("{}: meshd runs (pid {})", host.name(), host.meshd().map_or(0, |meshd| meshd.pid));
            }
            Command::Unplug { host } => open()?.host_named(&host)?.unplug()?,
            Command::Plug { host } => open()?.host_named(&host)?.plug()?,
            Command::Run { host, command } => {
                return become_command(&open()?.host_named(&host)?.cmd(command));
            }
            Command::Container { host, name, options } => {
                let (_, output) = open()?.host_named(&host)?.container(&name, options)?;
                return Ok(pass_through(&output));
            }
            Command::Exec { name, command } => {
                return become_command(&open()?.cmd_in(&name, command)?);
            }
            Command::Serve { name, port } => {
                let lab = open()?;
                let server =
                    ServerProcess::start(lab.container_named(&name)?.netns(), &name, port, &lab.path())?;
                println!("{name}: serves on port {port} (pid {})", server.detach());
            }
            Command::Web { name, port } => WebServer::serve(&name, port)?,
            Command::Demo { keep } => return demo::run(keep),
        }
        Ok(0)
    }
}

fn status_json(lab: &Lab) -> Result<String> {
    serde_json::to_string_pretty(&lab.status()?)
        .map_err(|source| Error::Json { command: "lab status".to_owned(), source })
}

fn print_table(lab: &Lab) -> Result<()> {
    let status = lab.status()?;
    println!("{:<12} {:<20} {:<16} MESHD", "HOST", "NETNS", "ADDRESS");
    for host in &status.hosts {
        let meshd = host.meshd_pid.map_or_else(|| "not running".to_owned(), |pid| format!("pid {pid}"));
        println!("{:<12} {:<20} {:<16} {meshd}", host.name, host.netns, host.address);
    }
    if !status.containers.is_empty() {
        println!("\n{:<12} {:<20} HOST", "CONTAINER", "NETNS");
    }
    for container in &status.containers {
        println!("{:<12} {:<20} {}", container.name, container.netns, container.host);
    }
    Ok(())
}

/// Replaces this process with the command; what comes back is why that failed, with a shell's exit
/// code for it.
fn become_command(command: &Cmd) -> Result<u8> {
    match command.exec() {
        error @ Error::System { .. } if error.is_not_found() => {
            eprintln!("error: {error}");
            Ok(127)
        }
        error => Err(error),
    }
}

/// What a command printed and its exit code, as if it had been run directly.
fn pass_through(output: &Output) -> u8 {
    print!("{}", output.stdout);
    eprint!("{}", output.stderr);
    u8::try_from(output.code).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Command {
        Cli::try_parse_from(line.split(' ')).expect("a valid command line").command
    }

    #[test]
    fn options_of_what_is_run_are_not_taken_for_the_labs_own() {
        let Command::Run { host, command } = parse("lab --prefix x run h1 -- ip -o link --help") else {
            panic!("run")
        };
        assert_eq!((host.as_str(), command.join(" ").as_str()), ("h1", "ip -o link --help"));
        let Command::Container { options, .. } = parse("lab container h2 web --network blue --ip 10.64.0.9")
        else {
            panic!("container")
        };
        assert_eq!(options.join(" "), "--network blue --ip 10.64.0.9");
        let Command::Exec { command, .. } = parse("lab exec web -- sh -c true --prefix y") else {
            panic!("exec")
        };
        assert_eq!(command.join(" "), "sh -c true --prefix y");
    }

    #[test]
    fn a_lab_without_hosts_is_a_usage_error() {
        let error = Cli::try_parse_from(["lab", "up", "--hosts", "0"]).expect_err("0 hosts");
        assert_eq!(error.exit_code(), 2);
    }
}
