//! Programs that are loaded without an object file, and programs' ids.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{bpf, bpf_fd, descriptor, info};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// One instruction of eBPF, `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    /// One with these fields.
    pub const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        // Bit fields begin at the low end on little-endian machines, at the high end on others.
        let registers = if cfg!(target_endian = "little") {
            source << 4 | destination
        } else {
            destination << 4 | source
        };
        Self { code, registers, offset, immediate }
    }
}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    input_length: u32,
    output_length: u32,
    input: u64,
    output: u64,
    repeat: u32,
    duration: u32,
}

/// Loads a tc program that needs no maps.
pub fn load_classifier(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attributes = ProgramLoad {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr() as u64,
        licence: c"GPL".as_ptr() as u64,
        ..ProgramLoad::default()
    };
    bpf_fd(BPF_PROG_LOAD, &mut attributes)
}

/// Runs a program on a frame, and returns what it returns.
pub fn test_run(program: &OwnedFd, frame: &[u8]) -> io::Result<u32> {
    let mut attributes = TestRun {
        program: descriptor(program.as_fd()),
        input_length: u32::try_from(frame.len()).map_err(io::Error::other)?,
        input: frame.as_ptr() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    bpf(BPF_PROG_TEST_RUN, &mut attributes)?;
    Ok(attributes.result)
}

/// The id of a program.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    // The start of `struct bpf_prog_info`: its type and its id.
    let mut found = [0_u32; 2];
    info(program, &mut found)?;
    Ok(found[1])
}
