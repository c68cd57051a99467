//! From desired and observed state to a plan, as a pure function
