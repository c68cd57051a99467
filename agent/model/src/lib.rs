//! Identifiers, records, desired and observed state, and the plan that leads from one to the other
