//! This node's endpoints as a manager has received them.

use std::collections::BTreeMap;

use mesh_model::{Endpoint, EndpointId};

/// The endpoints as last reported.
#[derive(Debug, Default)]
pub(crate) struct Reported {
    endpoints: BTreeMap<EndpointId, Endpoint>,
    /// How many changes there had been by then, at least.
    count: u64,
}

/// A report of endpoints.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct News {
    /// New, or not what they were.
    pub(crate) put: Vec<Endpoint>,
    /// Gone.
    pub(crate) removed: Vec<EndpointId>,
}

impl Reported {
    /// Notes that all endpoints are reported. They were read after this count of changes, or later.
    pub(crate) fn all(count: u64, endpoints: BTreeMap<EndpointId, Endpoint>) -> Self {
        Self { endpoints, count }
    }

    /// Returns the reported endpoints.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values()
    }

    /// The news after so many changes, which count as sent from now on; `None` without any change.
    /// What `now` reads may know of later changes too. News that are empty are sent as well:
    /// somebody may wait for that.
    pub(crate) fn news(
        &mut self,
        count: u64,
        now: impl FnOnce() -> BTreeMap<EndpointId, Endpoint>,
    ) -> Option<News> {
        // Before the read: what is read and not reported would never be reported.
        if count == self.count {
            return None;
        }
        let now = now();
        let put = now.iter().filter(|(id, endpoint)| self.endpoints.get(*id) != Some(*endpoint));
        let put = put.map(|(_, endpoint)| endpoint.clone()).collect();
        let removed = self.endpoints.keys().filter(|id| !now.contains_key(*id)).cloned().collect();
        *self = Self { endpoints: now, count };
        Some(News { put, removed })
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::fake::endpoint;

    use super::*;

    fn of(numbers: &[u8]) -> BTreeMap<EndpointId, Endpoint> {
        numbers
            .iter()
            .map(|number| endpoint(*number))
            .map(|endpoint| (endpoint.id.clone(), endpoint))
            .collect()
    }

    #[test]
    fn what_came_changed_or_went_is_told_once() {
        let mut reported = Reported::all(3, of(&[1, 2]));
        let mut now = of(&[2, 3]);
        let changed = now.values_mut().next().unwrap();
        changed.name = "renamed".parse().unwrap();
        let changed = changed.clone();
        let [first, third] = [1, 3].map(endpoint);
        let news = reported.news(4, || now.clone()).unwrap();
        assert_eq!(news, News { put: vec![changed, third], removed: vec![first.id] });
        assert_eq!(reported.news(5, || now.clone()), Some(News { put: vec![], removed: vec![] }));
        assert_eq!(reported.news(5, || now), None);
    }

    /// A change is made, and then counted: between the two, who looks sees it and does not know
    /// that there is one.
    #[test]
    fn a_change_that_could_be_seen_before_it_was_counted_is_told_when_it_is() {
        let mut reported = Reported::all(3, of(&[1, 2]));
        assert_eq!(reported.news(3, || of(&[2])), None);
        assert_eq!(reported.news(4, || of(&[2])).unwrap().removed, [endpoint(1).id]);
    }
}
