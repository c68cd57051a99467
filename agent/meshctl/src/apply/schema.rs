//! The keys of Compose files, to distinguish misspelt keys from those that do not concern Mesh.

/// The keys that are allowed at one place of the file.
#[derive(Debug)]
pub(super) enum Schema {
    /// Not checked: any value is allowed.
    Free,
    /// Any names as keys, all with the same kind of value.
    Names(&'static Self),
    /// Only these keys.
    Keys(&'static [(&'static str, &'static Self)]),
}

/// The extension that holds Mesh's own keys.
pub(super) const OWN: &str = "x-mesh";

const FREE: &Schema = &Schema::Free;

/// The whole file.
pub(super) static ROOT: Schema = Schema::Keys(&[
    ("configs", FREE),
    ("include", FREE),
    ("models", FREE),
    ("name", FREE),
    ("networks", &Schema::Names(&NETWORK)),
    ("secrets", FREE),
    ("services", &Schema::Names(&SERVICE)),
    ("version", FREE),
    ("volumes", FREE),
]);

static NETWORK: Schema = Schema::Keys(&[
    ("attachable", FREE),
    ("driver", FREE),
    ("driver_opts", FREE),
    ("enable_ipv4", FREE),
    ("enable_ipv6", FREE),
    ("external", &Schema::Keys(&[("name", FREE)])),
    ("internal", FREE),
    ("ipam", &IPAM),
    ("labels", FREE),
    ("name", FREE),
    (OWN, &NETWORK_OWN),
]);

static NETWORK_OWN: Schema = Schema::Keys(&[
    ("encrypted", FREE),
    ("host-access", FREE),
    ("metadata", FREE),
    ("mtu", FREE),
    ("vni", FREE),
]);

static IPAM: Schema = Schema::Keys(&[
    (
        "config",
        &Schema::Keys(&[("aux_addresses", FREE), ("gateway", FREE), ("ip_range", FREE), ("subnet", FREE)]),
    ),
    ("driver", FREE),
    ("options", FREE),
]);

static SERVICE: Schema = Schema::Keys(&[
    ("annotations", FREE),
    ("attach", FREE),
    ("blkio_config", FREE),
    ("build", FREE),
    ("cap_add", FREE),
    ("cap_drop", FREE),
    ("cgroup", FREE),
    ("cgroup_parent", FREE),
    ("command", FREE),
    ("configs", FREE),
    ("container_name", FREE),
    ("cpu_count", FREE),
    ("cpu_percent", FREE),
    ("cpu_period", FREE),
    ("cpu_quota", FREE),
    ("cpu_rt_period", FREE),
    ("cpu_rt_runtime", FREE),
    ("cpu_shares", FREE),
    ("cpus", FREE),
    ("cpuset", FREE),
    ("credential_spec", FREE),
    ("depends_on", FREE),
    ("deploy", &DEPLOY),
    ("develop", FREE),
    ("device_cgroup_rules", FREE),
    ("devices", FREE),
    ("dns", FREE),
    ("dns_opt", FREE),
    ("dns_search", FREE),
    ("domainname", FREE),
    ("entrypoint", FREE),
    ("env_file", FREE),
    ("environment", FREE),
    ("expose", FREE),
    ("extends", FREE),
    ("external_links", FREE),
    ("extra_hosts", FREE),
    ("gpus", FREE),
    ("group_add", FREE),
    ("healthcheck", &HEALTH),
    ("hostname", FREE),
    ("image", FREE),
    ("init", FREE),
    ("ipc", FREE),
    ("isolation", FREE),
    ("label_file", FREE),
    ("labels", FREE),
    ("links", FREE),
    ("logging", FREE),
    ("mac_address", FREE),
    ("mem_limit", FREE),
    ("mem_reservation", FREE),
    ("mem_swappiness", FREE),
    ("memswap_limit", FREE),
    ("models", FREE),
    ("network_mode", FREE),
    ("networks", &Schema::Names(&MEMBERSHIP)),
    ("oom_kill_disable", FREE),
    ("oom_score_adj", FREE),
    ("pid", FREE),
    ("pids_limit", FREE),
    ("platform", FREE),
    ("ports", &PORT),
    ("post_start", FREE),
    ("pre_stop", FREE),
    ("privileged", FREE),
    ("profiles", FREE),
    ("provider", FREE),
    ("pull_policy", FREE),
    ("read_only", FREE),
    ("restart", FREE),
    ("runtime", FREE),
    ("scale", FREE),
    ("secrets", FREE),
    ("security_opt", FREE),
    ("shm_size", FREE),
    ("stdin_open", FREE),
    ("stop_grace_period", FREE),
    ("stop_signal", FREE),
    ("storage_opt", FREE),
    ("sysctls", FREE),
    ("tmpfs", FREE),
    ("tty", FREE),
    ("ulimits", FREE),
    ("use_api_socket", FREE),
    ("user", FREE),
    ("userns_mode", FREE),
    ("uts", FREE),
    ("volumes", FREE),
    ("volumes_from", FREE),
    ("working_dir", FREE),
    (OWN, &SERVICE_OWN),
]);

static SERVICE_OWN: Schema = Schema::Keys(&[
    ("affinity", FREE),
    ("health-http", FREE),
    ("health-interval", FREE),
    ("health-retries", FREE),
    ("health-tcp", FREE),
    ("when-all-unhealthy", FREE),
    ("vip", FREE),
    ("vip6", FREE),
]);

static DEPLOY: Schema = Schema::Keys(&[
    ("endpoint_mode", FREE),
    ("labels", FREE),
    ("mode", FREE),
    ("placement", FREE),
    ("replicas", FREE),
    ("resources", FREE),
    ("restart_policy", FREE),
    ("rollback_config", FREE),
    ("update_config", FREE),
]);

static HEALTH: Schema = Schema::Keys(&[
    ("disable", FREE),
    ("interval", FREE),
    ("retries", FREE),
    ("start_interval", FREE),
    ("start_period", FREE),
    ("test", FREE),
    ("timeout", FREE),
]);

static MEMBERSHIP: Schema = Schema::Keys(&[
    ("aliases", FREE),
    ("driver_opts", FREE),
    ("gw_priority", FREE),
    ("interface_name", FREE),
    ("ipv4_address", FREE),
    ("ipv6_address", FREE),
    ("link_local_ips", FREE),
    ("mac_address", FREE),
    ("priority", FREE),
]);

static PORT: Schema = Schema::Keys(&[
    ("app_protocol", FREE),
    ("host_ip", FREE),
    ("mode", FREE),
    ("name", FREE),
    ("protocol", FREE),
    ("published", FREE),
    ("target", FREE),
]);

impl Schema {
    /// Returns the schema of a key's value.
    pub(super) fn below(&'static self, key: &str) -> &'static Self {
        match self {
            Self::Free => self,
            Self::Names(each) => each,
            Self::Keys(keys) => keys.iter().find(|(known, _)| *known == key).map_or(FREE, |(_, below)| below),
        }
    }

    /// Returns whether the key is allowed here.
    pub(super) fn knows(&self, key: &str) -> bool {
        match self {
            Self::Free | Self::Names(_) => true,
            Self::Keys(keys) => keys.iter().any(|(known, _)| *known == key),
        }
    }

    /// Returns the keys that are allowed here, if they are limited.
    pub(super) fn keys(&self) -> Vec<&'static str> {
        match self {
            Self::Free | Self::Names(_) => Vec::new(),
            Self::Keys(keys) => keys.iter().map(|(key, _)| *key).collect(),
        }
    }

    /// Returns the allowed key that is most similar to an unknown one.
    pub(super) fn nearest(&self, key: &str) -> Option<&'static str> {
        nearest(key, self.keys())
    }
}

/// Returns the most similar known word.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = word.to_lowercase().replace('-', "_");
    let distance = |other: &&str| strsim::osa_distance(&folded, &other.replace('-', "_"));
    let best = known.into_iter().min_by_key(distance)?;
    // A third of the letters may be wrong.
    let allowed = (word.chars().count() / 3).max(1);
    (distance(&best) <= allowed).then_some(best)
}

/// Describes where a misplaced key is allowed.
pub(super) fn home(key: &str) -> Option<&'static str> {
    let places = [(&SERVICE, "a service"), (&NETWORK, "a network"), (&ROOT, "the file's top level")];
    places.into_iter().find(|(schema, _)| schema.knows(key)).map(|(_, place)| place)
}

/// Returns whether these are the keys of a service.
pub(super) fn is_like_a_service<'a>(mut keys: impl Iterator<Item = &'a str>) -> bool {
    keys.any(|key| matches!(key, "image" | "build" | "ports" | "networks" | "environment" | "command" | OWN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_describes_every_own_key() {
        let page = include_str!("../../../../docs/reference/compose.md");
        for (schema, section) in
            [(&NETWORK_OWN, "networks.NAME.x-mesh"), (&SERVICE_OWN, "services.NAME.x-mesh")]
        {
            let (_, text) = page.split_once(&format!("Key below `{section}`")).unwrap();
            let (text, _) = text.split_once("\n\n").unwrap();
            for key in schema.keys() {
                assert!(text.contains(&format!("| `{key}` |")), "{section}: {key}");
            }
        }
    }
}
