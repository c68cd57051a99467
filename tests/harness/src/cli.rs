//! The `mesh-lab` command.
