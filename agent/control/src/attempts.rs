//! Attempts to join with a wrong token: counted, logged, and limited for each address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mesh_proto::{Problem, ProblemKind};
use parking_lot::{Mutex, MutexGuard};
use tracing::warn;

/// Number of wrong tokens that one address may send at once; afterwards one in each interval.
const BURST: u32 = 10;
const INTERVAL: Duration = Duration::from_secs(6);
/// Maximum number of addresses that are recorded.
const MAX_ADDRESSES: usize = 4096;
/// How long wrong tokens are shown as a problem.
const SHOWN: Duration = Duration::from_mins(10);

/// The wrong tokens since this manager started.
#[derive(Debug, Default)]
pub(crate) struct Attempts(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    total: u64,
    addresses: BTreeMap<IpAddr, OfAddress>,
}

#[derive(Debug, Clone, Copy)]
struct OfAddress {
    /// How many more attempts are accepted, as of the last one.
    left: u32,
    last: Instant,
    refused: u64,
}

impl OfAddress {
    fn left(&self, now: Instant) -> u32 {
        let earned = now.saturating_duration_since(self.last).as_secs() / INTERVAL.as_secs();
        self.left.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(BURST)
    }
}

impl Attempts {
    /// Checks whether an attempt from an address is accepted now.
    pub(crate) fn check(&self, address: IpAddr, now: Instant) -> Result<(), Problem> {
        let mut known = self.lock();
        let Some(of_address) = known.addresses.get_mut(&address) else { return Ok(()) };
        if of_address.left(now) > 0 {
            return Ok(());
        }
        of_address.refused += 1;
        known.total += 1;
        Err(Problem::new(ProblemKind::Denied, format!("too many joins with a wrong token from {address}"))
            .hint(format!(
                "wait {} s, then use the current token: meshctl cluster join-token worker",
                INTERVAL.as_secs()
            )))
    }

    /// Records a wrong token from an address.
    pub(crate) fn failed(&self, address: IpAddr, now: Instant) {
        let mut known = self.lock();
        known.total += 1;
        if known.addresses.len() >= MAX_ADDRESSES && !known.addresses.contains_key(&address) {
            known.addresses.retain(|_, one| one.left(now) < BURST);
        }
        if known.addresses.len() >= MAX_ADDRESSES && !known.addresses.contains_key(&address) {
            return;
        }
        let before = known.addresses.get(&address).copied();
        let before = before.unwrap_or(OfAddress { left: BURST, last: now, refused: 0 });
        let left = before.left(now).saturating_sub(1);
        let refused = before.refused + 1;
        warn!(%address, refused, "a join with a wrong token");
        if left == 0 {
            warn!(%address, "joins from this address are rejected for a while");
        }
        known.addresses.insert(address, OfAddress { left, last: now, refused });
    }

    /// Returns how many attempts were refused since this manager started.
    pub(crate) fn refused(&self) -> u64 {
        self.lock().total
    }

    /// Returns the problem to show, one line for all addresses.
    pub(crate) fn problem(&self, now: Instant) -> Option<String> {
        let known = self.lock();
        let recent =
            known.addresses.iter().filter(|(_, one)| now.saturating_duration_since(one.last) < SHOWN);
        let (count, busiest) =
            recent.fold((0, None::<(&IpAddr, u64)>), |(count, busiest), (address, one)| {
                let is_busier = busiest.is_none_or(|(_, most)| one.refused > most);
                (count + one.refused, if is_busier { Some((address, one.refused)) } else { busiest })
            });
        let (address, most) = busiest?;
        // Ignore a few: people mistype.
        (count > u64::from(BURST) / 2).then(|| {
            format!("{count} joins with a wrong token in the last minutes, {most} of them from {address}")
        })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_tokens_from_one_address_are_limited_and_others_still_accepted() {
        let attempts = Attempts::default();
        let [loud, other]: [IpAddr; 2] = [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
        let now = Instant::now();
        for _ in 0..BURST {
            attempts.check(loud, now).unwrap();
            attempts.failed(loud, now);
        }
        assert_eq!(attempts.check(loud, now).unwrap_err().kind, ProblemKind::Denied);
        attempts.check(other, now).unwrap();
        assert!(attempts.problem(now).unwrap().contains("192.0.2.1"));
        assert_eq!(attempts.refused(), u64::from(BURST) + 1);
        let later = now + INTERVAL;
        attempts.check(loud, later).unwrap();
        attempts.failed(loud, later);
        assert!(attempts.check(loud, later).is_err());
        assert_eq!(attempts.problem(now + SHOWN * 2), None);
    }
}
