//! A host in a namespace: the server, the networks it serves, and clients.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
};
use mesh_dns::{Backend, DnsServer, Endpoint, EndpointMode, Service, Sockets, Zone, Zones};
use mesh_harness::{Netns, OwnedNetns, ip_batch_in};
use tokio::sync::{oneshot, watch};

/// The gateway of the network `app`, and of those that must not see its names.
pub(crate) const APP: &str = "10.64.0.1";
pub(crate) const APP_V6: &str = "fd00:64::1";
pub(crate) const OTHER: &str = "10.65.0.1";
pub(crate) const INNER: &str = "10.66.0.1";

/// A resolver outside that knows example.com.
pub(crate) const OUTSIDE: &str = "127.0.2.1";

pub(crate) struct Lab {
    pub(crate) server: Arc<DnsServer>,
    pub(crate) zones: watch::Sender<Zones>,
    runtime: tokio::runtime::Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    resolv_conf: tempfile::NamedTempFile,
    pub(crate) netns: OwnedNetns,
}

impl Lab {
    /// Networks `app`, `other` and the internal `inner` are served, and `outside`, the stand-in for
    /// the world.
    pub(crate) fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mtdns{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let netns = OwnedNetns::create(name).unwrap();
        let addresses = [APP, OTHER, INNER].map(|gateway| format!("addr add {gateway}/32 dev lo"));
        ip_batch_in(&netns, &addresses).unwrap();
        ip_batch_in(&netns, &[format!("addr add {APP_V6}/128 dev lo nodad")]).unwrap();

        let resolv_conf = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&resolv_conf, format!("nameserver {APP}\nnameserver {OUTSIDE}\n")).unwrap();
        let (zones, receiver) = watch::channel(zones());
        let (runtime, server, stop, thread) = run(&netns, receiver, resolv_conf.path());
        let lab = Self { server, zones, runtime, stop: Some(stop), thread: Some(thread), resolv_conf, netns };
        for (network, address) in
            [("app", APP), ("app", APP_V6), ("other", OTHER), ("inner", INNER), ("outside", OUTSIDE)]
        {
            lab.serve(network, lab.bind(address));
        }
        lab
    }

    /// Sockets for one address, in the namespace.
    pub(crate) fn bind(&self, address: &str) -> Sockets {
        let address = SocketAddr::new(address.parse().unwrap(), 53);
        self.netns.enter(|| Sockets::bind(address)).unwrap().unwrap()
    }

    pub(crate) fn serve(&self, network: &str, sockets: Sockets) {
        let _guard = self.runtime.enter();
        self.server.serve(network, sockets).unwrap();
    }

    pub(crate) fn stop(&self, network: &str) {
        let (done, wait) = mpsc::channel();
        let (server, network) = (Arc::clone(&self.server), network.to_owned());
        self.runtime.spawn(async move {
            server.stop(&network).await;
            done.send(()).unwrap();
        });
        wait.recv().unwrap();
    }

    /// Changes the zone of one network.
    pub(crate) fn change(&self, network: &str, change: impl FnOnce(&mut Zone)) {
        self.zones.send_modify(|zones| change(Arc::make_mut(zones.networks.get_mut(network).unwrap())));
    }

    /// Replaces the host's resolvers, and waits for as long as the former are kept without a look
    /// at the file.
    pub(crate) fn resolvers(&self, addresses: &[&str]) {
        let lines: Vec<String> = addresses.iter().map(|address| format!("nameserver {address}")).collect();
        let text = lines.join("\n");
        std::fs::write(&self.resolv_conf, text).unwrap();
        std::thread::sleep(Duration::from_millis(1100));
    }

    /// Runs `dig` with words such as `@10.64.0.1 web A`.
    pub(crate) fn dig(&self, words: &str) -> Dig {
        let fixed = ["dig", "+tries=1", "+time=12", "+nocmd", "+nostats"];
        let argv = fixed.into_iter().chain(words.split(' '));
        Dig(self.netns.run(argv).unwrap().text().unwrap())
    }

    /// The data of the answers to a question of `dig`, sorted.
    pub(crate) fn short(&self, words: &str) -> Vec<String> {
        self.dig(words).data()
    }

    /// Runs `getent` as it would run in a container with this resolv.conf; its exit code and
    /// output.
    pub(crate) fn getent(&self, resolv_conf: &str, words: &[&str]) -> (i32, String) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, resolv_conf).unwrap();
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec getent \"$@\"";
        let mut argv = vec!["unshare", "-m", "sh", "-c", script, file.path().to_str().unwrap()];
        argv.extend(words);
        let output = self.netns.run(argv).unwrap();
        (output.code, output.stdout)
    }

    /// A client's socket in the namespace, connected to a server.
    pub(crate) fn client(&self, server: &str) -> UdpSocket {
        self.client_from(if server.contains(':') { "::" } else { "0.0.0.0" }, server)
    }

    /// The same from one of the namespace's addresses.
    pub(crate) fn client_from(&self, own: &str, server: &str) -> UdpSocket {
        let own = SocketAddr::new(own.parse().unwrap(), 0);
        let server = SocketAddr::new(server.parse().unwrap(), 53);
        let socket = self
            .netns
            .enter(|| {
                let socket = UdpSocket::bind(own)?;
                socket.connect(server)?;
                Ok::<_, std::io::Error>(socket)
            })
            .unwrap()
            .unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(12))).unwrap();
        socket
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs a server on a thread in the namespace.
fn run(
    netns: &Netns,
    zones: watch::Receiver<Zones>,
    resolv_conf: &Path,
) -> (tokio::runtime::Handle, Arc<DnsServer>, oneshot::Sender<()>, JoinHandle<()>) {
    let (netns, resolv_conf) = (netns.clone(), resolv_conf.to_owned());
    let (stop, stopped) = oneshot::channel();
    let (ready, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        netns.enter_for_good().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = Arc::new(DnsServer::new(zones, resolv_conf));
        ready.send((runtime.handle().clone(), server)).unwrap();
        let _ = runtime.block_on(stopped);
    });
    let (runtime, server) = wait.recv().unwrap();
    (runtime, server, stop, thread)
}

/// What `dig` printed.
pub(crate) struct Dig(String);

impl Dig {
    /// NOERROR, NXDOMAIN, ...
    pub(crate) fn status(&self) -> &str {
        self.0.split_once("status: ").map_or("none", |(_, rest)| rest.split(',').next().unwrap())
    }

    /// Such as `aa`.
    pub(crate) fn has_flag(&self, flag: &str) -> bool {
        let flags = self.0.split_once(";; flags: ").map_or("", |(_, rest)| rest.split(';').next().unwrap());
        flags.split(' ').any(|found| found == flag)
    }

    /// The fields of a section's records.
    pub(crate) fn section(&self, section: &str) -> Vec<Vec<&str>> {
        self.0
            .lines()
            .skip_while(|line| !line.starts_with(&format!(";; {section} SECTION:")))
            .skip(1)
            .take_while(|line| !line.is_empty())
            .map(|line| line.split_whitespace().collect())
            .collect()
    }

    /// The answers' data, sorted.
    pub(crate) fn data(&self) -> Vec<String> {
        let mut data: Vec<String> =
            self.section("ANSWER").iter().map(|record| record[4..].join(" ")).collect();
        data.sort();
        data
    }

    /// All that was printed.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

/// A question's octets.
pub(crate) fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

/// The next answer's id and code.
pub(crate) fn receive(client: &UdpSocket) -> std::io::Result<(u16, ResponseCode)> {
    let mut buffer = [0; 4096];
    let length = client.recv(&mut buffer)?;
    let message = Message::from_vec(&buffer[..length]).unwrap();
    Ok((message.metadata.id, message.metadata.response_code))
}

pub(crate) fn endpoint(name: &str, ipv4: &str) -> Endpoint {
    Endpoint { name: name.into(), ipv4: Some(ipv4.parse().unwrap()), healthy: true, ..Endpoint::default() }
}

/// As many backends as asked for, at 10.64.BLOCK.0 and on.
pub(crate) fn backends(block: u8, count: u16) -> Vec<Backend> {
    (0..count)
        .map(|n| Backend {
            ipv4: Some(std::net::Ipv4Addr::from(0x0a40_0000 + (u32::from(block) << 8) + u32::from(n))),
            ipv6: None,
            healthy: true,
        })
        .collect()
}

fn zones() -> Zones {
    let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
    let app = Zone {
        gateways: vec![ip(APP), ip(APP_V6)],
        subnets: vec!["10.64.0.0/16".parse().unwrap(), "fd00:64::/64".parse().unwrap()],
        endpoints: vec![
            Endpoint {
                ipv6: Some("fd00:64::5".parse().unwrap()),
                aliases: vec!["database".into()],
                ..endpoint("db", "10.64.0.5")
            },
            endpoint("web.1", "10.64.0.6"),
        ]
        .into(),
        services: vec![
            Service {
                name: "web".into(),
                mode: EndpointMode::Vip { ipv4: Some("10.64.255.1".parse().unwrap()), ipv6: None },
                backends: backends(1, 3),
                ..Service::default()
            },
            Service {
                name: "rr".into(),
                mode: EndpointMode::RoundRobin,
                backends: backends(2, 4),
                ..Service::default()
            },
            Service {
                name: "large".into(),
                mode: EndpointMode::RoundRobin,
                backends: backends(16, 1000),
                ..Service::default()
            },
        ]
        .into(),
        ..Zone::default()
    };
    let other = Zone {
        gateways: vec![ip(OTHER)],
        subnets: vec!["10.65.0.0/16".parse().unwrap()],
        endpoints: vec![endpoint("db", "10.65.0.5"), endpoint("secret", "10.65.0.6")].into(),
        ..Zone::default()
    };
    let inner = Zone {
        gateways: vec![ip(INNER)],
        subnets: vec!["10.66.0.0/16".parse().unwrap()],
        internal: true,
        endpoints: vec![endpoint("db", "10.66.0.5")].into(),
        ..Zone::default()
    };
    // Internal: what it does not know does not exist.
    let outside = Zone {
        internal: true,
        endpoints: vec![Endpoint {
            aliases: vec!["www.example.com".into()],
            ..endpoint("www", "198.51.100.1")
        }]
        .into(),
        services: vec![Service {
            name: "many.example.com".into(),
            mode: EndpointMode::RoundRobin,
            backends: backends(32, 300),
            ..Service::default()
        }]
        .into(),
        ..Zone::default()
    };
    let networks = [("app", app), ("other", other), ("inner", inner), ("outside", outside)];
    let networks = networks.into_iter().map(|(name, zone)| (name.into(), Arc::new(zone))).collect();
    Zones { networks, ..Zones::default() }
}
