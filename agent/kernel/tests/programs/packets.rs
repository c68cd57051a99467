//! What each program does with a packet: one at a time, by `BPF_PROG_TEST_RUN`.

mod balanced;
mod direct_return;
mod early;
mod egress;
mod encrypted;
mod endpoint;
mod flows;
mod guard;
mod hop_limit;
mod host;
mod host_access;
mod tunnel;
