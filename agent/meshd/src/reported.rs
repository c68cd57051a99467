//! What a manager has been told of this node's endpoints.

use std::collections::BTreeMap;

use mesh_model::{Endpoint, EndpointId};

/// What it was told last.
#[derive(Debug, Default)]
pub struct Reported {
    endpoints: BTreeMap<EndpointId, Endpoint>,
    /// How many changes there had been by then, at least.
    count: u64,
}

/// What it is to be told.
#[derive(Debug, PartialEq, Eq)]
pub struct News {
    /// New, or not what they were.
    pub put: Vec<Endpoint>,
    /// Gone.
    pub removed: Vec<EndpointId>,
}

impl Reported {
    /// It was told all of them; they were read when there had been so many changes, or more.
    pub fn all(count: u64, endpoints: BTreeMap<EndpointId, Endpoint>) -> Self {
        Self { endpoints, count }
    }

    /// All that it was told.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values()
    }

    /// The news after so many changes, which count as told from now on; `None` without any change.
    /// What `now` reads may know of later changes too. News that are empty are told as well:
    /// somebody may wait for that.
    pub fn news(&mut self, count: u64, now: impl FnOnce() -> BTreeMap<EndpointId, Endpoint>) -> Option<News> {
        // Before anything is read: what is read and not told would never be told.
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
    use super::*;
    use crate::endpoint_store::tests::endpoint;

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
