//! `meshctl cni`: files for container runtimes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn meshctl(dir: &Path, args: &[&str]) -> Output {
    let folders = ["--dir", "bin", "--conf-dir", "net.d"];
    Command::new(env!("CARGO_BIN_EXE_meshctl")).args(args).args(folders).current_dir(dir).output().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn install_is_repeatable_and_uninstall_leaves_the_files_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("plugin"), "program").unwrap();
    let install =
        |network: &str| meshctl(dir, &["cni", "install", "--binary", "plugin", "--network", network]);
    for network in ["app", "app", "back"] {
        let installed = install(network);
        assert!(installed.status.success(), "{installed:?}");
    }
    fs::write(dir.join("net.d/87-podman.conflist"), "{}").unwrap();
    assert_eq!(names(&dir.join("bin")), ["mesh-cni"]);
    assert_eq!(
        names(&dir.join("net.d")),
        ["10-mesh-app.conflist", "10-mesh-back.conflist", "87-podman.conflist"]
    );
    let program = dir.join("bin/mesh-cni");
    assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);
    let text = fs::read_to_string(dir.join("net.d/10-mesh-app.conflist")).unwrap();
    let configuration: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&configuration["name"], &configuration["plugins"][0]["network"]),
        (&"app".into(), &"app".into())
    );

    // The program goes with the last configuration that names it.
    assert!(meshctl(dir, &["cni", "uninstall", "--network", "app"]).status.success());
    assert!(program.exists());
    for _ in 0..2 {
        assert!(meshctl(dir, &["cni", "uninstall", "--network", "back"]).status.success());
    }
    assert!(!program.exists());
    assert_eq!(names(&dir.join("net.d")), ["87-podman.conflist"]);
}

#[test]
fn a_program_that_is_missing_is_one_error_with_a_hint_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let failed = meshctl(dir.path(), &["cni", "install", "--binary", "absent", "--network", "app"]);
    let stderr = String::from_utf8(failed.stderr).unwrap();
    assert_eq!(failed.status.code(), Some(1));
    assert!(stderr.starts_with("error: cannot read absent") && stderr.contains("--binary"), "{stderr}");
    assert_eq!(names(dir.path()), Vec::<String>::new());
}
