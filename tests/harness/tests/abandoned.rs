//! Labs whose owner was killed. Needs root.

use std::{fs, path::Path, process::Command, time::Duration};

use mesh_harness::{Lab, Result, eventually};

const MESH_LAB: &str = env!("CARGO_BIN_EXE_mesh-lab");

fn namespaces(prefix: &str) -> usize {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&format!("{prefix}-"))).count()
}

#[test]
fn a_lab_whose_owner_was_killed_is_taken_down_and_others_are_not() -> Result<()> {
    let other = Lab::builder().hosts(1).without_meshd().start()?;
    let prefix = format!("mk{}", std::process::id());
    // It owns the lab until all hosts are ready.
    let up = ["--prefix", &prefix, "up", "--hosts", "30"];
    let mut owner = Command::new(MESH_LAB).args(up).spawn().expect("mesh-lab runs");
    let began = eventually("a host", Duration::from_secs(20), || namespaces(&prefix) > 3);
    owner.kill().expect("a child");
    owner.wait().expect("a child");
    began?;

    // A test that starts a lab may be at it already.
    let down = Command::new(MESH_LAB).args(["down", "--abandoned"]).status().expect("mesh-lab runs");
    assert!(down.success());
    eventually("it is gone", Duration::from_secs(5), || {
        namespaces(&prefix) == 0 && !Path::new("/run/mesh-lab").join(&prefix).exists()
    })?;
    assert_eq!(namespaces(other.prefix()), 3, "the host, the client and the underlay");
    Ok(())
}
