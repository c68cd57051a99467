//! Packet processing on bytes, without I/O: segmentation, coalescing, and headers.

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
