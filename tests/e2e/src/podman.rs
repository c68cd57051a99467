//! podman as a user of the CNI plugin: the real program, with its files in the lab's directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_harness::{Binaries, Cmd, Host, Output, Result};

/// Time that podman may take to start or remove a container on a busy machine.
const PODMAN: Duration = Duration::from_mins(2);

/// podman on one host. Its containers are removed when this is dropped.
#[derive(Debug)]
pub struct Podman {
    host: Host,
    dir: PathBuf,
}

impl Podman {
    /// Sets podman up on a host, with the plugin and its configuration for a network as `meshctl
    /// cni install` writes them, and with an image `box` of busybox.
    pub fn install(host: &Host, network: &str) -> Result<Self> {
        let dir = host.path().join("podman");
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let binary = Binaries::locate()?.dir().join("mesh-cni");
        let (plugins, configurations) = (dir.join("bin"), dir.join("net.d"));
        host.meshctl([
            "cni",
            "install",
            "--network",
            network,
            "--binary",
            &text(binary),
            "--dir",
            &text(plugins.clone()),
            "--conf-dir",
            &text(configurations.clone()),
        ])?
        .ok()?;
        let settings = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\nlog_driver = \"k8s-file\"\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nlock_type = \"file\"\n\
             [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{}\"]\nnetwork_config_dir = \"{}\"\n",
            plugins.display(),
            configurations.display()
        );
        write(&dir.join("containers.conf"), &settings);
        let podman = Self { host: host.clone(), dir };
        podman.import()?;
        Ok(podman)
    }

    /// A command line of podman on its host.
    pub fn cmd(&self, args: &[&str]) -> Cmd {
        let folder = |name: &str| self.dir.join(name).to_string_lossy().into_owned();
        let global = [
            "podman".to_owned(),
            "--root".to_owned(),
            folder("root"),
            "--runroot".to_owned(),
            folder("run"),
            "--tmpdir".to_owned(),
            folder("tmp"),
            "--storage-driver".to_owned(),
            "vfs".to_owned(),
        ];
        let words = global.into_iter().chain(args.iter().map(|arg| (*arg).to_owned()));
        self.host.cmd(words).env("CONTAINERS_CONF", folder("containers.conf")).timeout(PODMAN)
    }

    /// Runs podman.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        self.cmd(args).output()
    }

    /// Makes the image `box`: busybox under all of its names.
    fn import(&self) -> Result<()> {
        let root = self.dir.join("image");
        let script = "set -e; mkdir -p bin etc tmp; cp \"$(command -v busybox)\" bin/; \
                      for name in $(bin/busybox --list); do \
                      [ $name = busybox ] || ln -s busybox bin/$name; done; tar -c . > ../image.tar";
        fs::create_dir_all(&root).unwrap_or_else(|error| panic!("cannot create {}: {error}", root.display()));
        let enter = format!("cd '{}'; {script}", root.display());
        self.host.run(["sh", "-c", &enter])?.ok()?;
        self.run(&["import", &format!("{}.tar", root.display()), "box"])?.ok()?;
        Ok(())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // What is left of it ends with the lab in any case; this ends the containers.
        drop(self.run(&["rm", "--all", "--force", "--time", "0"]));
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}
