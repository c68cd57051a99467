//! Routes of hosts, which networks' subnets must avoid.

use mesh_ipam::Family;
use mesh_model::Prefix;

use super::shown;

/// Maximum number of routes of a host that are considered.
const MAX_ROUTES: usize = 256;

/// A host's own routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Routes {
    /// No network with a requested subnet may overlap these.
    pub(crate) all: Vec<Prefix>,
    /// No automatic subnet may overlap these.
    pub(crate) automatic: Vec<Prefix>,
}

/// Returns the shortest prefix that counts as a route. A shorter one is a part of a default route
/// (`0.0.0.0/1`), and the more specific routes of networks take precedence over it.
const fn shortest(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 8,
        Family::Ipv6 => 16,
    }
}

/// Parses the routes that a host reports. If those of a worker take more than half of a default
/// address pool, automatic subnets ignore them: one host's routes must not prevent the cluster from
/// having networks.
pub(crate) fn routes(texts: &[String], pools: &[Prefix], is_trusted: bool) -> (Routes, Vec<String>) {
    let mut faults = Vec::new();
    let mut all: Vec<Prefix> = Vec::new();
    for text in texts {
        match text.parse::<Prefix>() {
            Ok(route) if route.len() < shortest(route.family()) => {}
            Ok(route) => all.push(route),
            Err(_) if faults.is_empty() => faults.push(format!("route {} is not a prefix", shown(text))),
            Err(_) => {}
        }
    }
    all.sort_unstable();
    all.dedup();
    if all.len() > MAX_ROUTES {
        faults.push(format!("{} routes are too many: only the first {MAX_ROUTES} are considered", all.len()));
        // The widest matter most.
        all.sort_by_key(Prefix::len);
        all.truncate(MAX_ROUTES);
    }
    let mut automatic = all.clone();
    if !is_trusted {
        for pool in pools.iter().filter(|pool| takes_most_of(&all, pool)) {
            automatic.retain(|route| !route.overlaps(pool));
            faults.push(format!(
                "routes of this host take most of the default address pool {pool}: automatic subnets may overlap them"
            ));
        }
    }
    (Routes { all, automatic }, faults)
}

fn takes_most_of(routes: &[Prefix], pool: &Prefix) -> bool {
    if routes.iter().any(|route| route.covers(pool)) {
        return true;
    }
    let inside: Vec<&Prefix> = routes.iter().filter(|route| pool.covers(route)).collect();
    // Count each address once: routes may be inside others.
    let outermost = inside.iter().filter(|route| !inside.iter().any(|o| o != *route && o.covers(route)));
    let taken = outermost.fold(0u128, |sum, route| sum.saturating_add(route.size()));
    taken > pool.size() / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> (Routes, Vec<String>) {
        let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
        routes(&texts, &["10.64.0.0/10".parse().unwrap()], false)
    }

    #[test]
    fn routes_like_default_routes_block_no_network() {
        let (routes, faults) = read(&["0.0.0.0/1", "128.0.0.0/1", "::/1", "64.0.0.0/2"]);
        assert_eq!((routes, faults.len()), (Routes::default(), 0));
    }

    #[test]
    fn routes_that_take_most_of_a_pool_do_not_block_automatic_subnets() {
        for lies in [
            &["10.0.0.0/8"][..],
            &["10.64.0.0/10"],
            &["10.64.0.0/11", "10.96.0.0/12"],
            &["10.64.0.0/12", "10.80.0.0/12", "10.96.0.0/12"],
        ] {
            let (routes, faults) = read(lies);
            assert_eq!((routes.all.len(), routes.automatic.len()), (lies.len(), 0), "{lies:?}");
            assert_eq!(faults.len(), 1, "{faults:?}");
        }
        let (routes, faults) = read(&["10.64.0.0/16", "192.168.0.0/16"]);
        assert_eq!((routes.automatic.len(), faults.len()), (2, 0));
    }

    #[test]
    fn a_flood_of_routes_is_bounded_and_reported() {
        let texts: Vec<String> = (0..1000u32)
            .map(|n| format!("11.{}.{}.0/24", n / 256, n % 256))
            .chain(["x\x1b".into()])
            .collect();
        let (routes, faults) = routes(&texts, &[], false);
        assert_eq!((routes.all.len(), faults.len()), (MAX_ROUTES, 2));
    }
}
