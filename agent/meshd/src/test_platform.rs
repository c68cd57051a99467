//! A platform in memory, for the tests of what runs on it.

use std::path::Path;
use std::sync::Arc;

use mesh_host::SharedKernel;
use mesh_host::fake::{TestHost, TestKernel};
use mesh_ipam::Delays;
use mesh_model::InterfacePatterns;
use mesh_model::desired::Encapsulation;
use mesh_reconciler::XdpPolicy;
use mesh_reconciler::fake::TestEngines;
use mesh_state::StatePaths;

use crate::platform::Platform;

/// A platform in a directory of its own.
pub(crate) fn platform(dir: &Path, host: Arc<TestHost>, kernel: &TestKernel) -> Platform {
    Platform {
        paths: StatePaths::new(dir),
        host,
        kernel: SharedKernel::new(Box::new(kernel.clone())),
        encapsulation: Encapsulation::Direct,
        encapsulation_reason: "as the test wants it".to_owned(),
        xdp: XdpPolicy::default(),
        publish_interfaces: InterfacePatterns::default(),
        delays: Delays::default(),
        name_server: None,
        engines: Arc::new(TestEngines::default()),
        connection_entries: None,
        rotate_keys: None,
    }
}
