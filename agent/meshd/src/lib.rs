//! The agent that runs on every host
