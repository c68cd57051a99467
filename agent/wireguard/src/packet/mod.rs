//! Packets as bytes, without any I/O: cutting super-packets, joining segments, the headers around
//! them.

mod checksum;
mod fragment;
mod join;
mod layers;
mod segment;
mod tag;
pub(crate) mod virtio;
pub(crate) mod vxlan;

pub(crate) use fragment::{Fragments, may_be_fragmented};
pub(crate) use join::Joiner;
pub(crate) use layers::flow_hash;
pub(crate) use segment::Cut;
pub use tag::FrameTag;
pub(crate) use vxlan::NotOurs;

#[cfg(test)]
mod properties;
