//! How much stack the programs take. No chain of calls may take more than 512 bytes, and before
//! Linux 6.8 each call counts in steps of 32: a kernel that runs the tests may be more generous
//! than one that runs the product.

use std::collections::BTreeMap;

use mesh_ebpf_types::{EARLY, ProgramKind};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-datapath"));
const LIMIT: u64 = 512;
const STEP: u64 = 32;

/// Section and offset of an instruction.
type Place = (usize, u64);

/// What one function needs, and what it calls.
#[derive(Debug, Default)]
struct Function {
    name: String,
    stack: u64,
    calls: Vec<Place>,
}

/// One instruction (RFC 9669).
struct Instruction {
    opcode: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn read(bytes: &[u8]) -> Self {
        let [opcode, registers, o0, o1, i0, i1, i2, i3] = *bytes.first_chunk().expect("eight bytes");
        Self {
            opcode,
            destination: registers & 15,
            source: registers >> 4,
            offset: i16::from_le_bytes([o0, o1]),
            immediate: i32::from_le_bytes([i0, i1, i2, i3]),
        }
    }
}

const FRAME_POINTER: u8 = 10;
const MOVE: u8 = 0xbf;
const ADD: u8 = 0x07;
const CALL: u8 = 0x85;
const LOAD_WIDE: u8 = 0x18;

fn functions(file: &object::File<'_>) -> BTreeMap<Place, Function> {
    let mut functions = BTreeMap::new();
    for symbol in
        file.symbols().filter(|symbol| symbol.kind() == object::SymbolKind::Text && symbol.size() > 0)
    {
        let index = symbol.section_index().expect("a section");
        let section = file.section_by_index(index).expect("a section");
        let code = section.data().expect("code");
        let relocations: BTreeMap<u64, Place> = section
            .relocations()
            .filter_map(|(offset, relocation)| {
                let RelocationTarget::Symbol(target) = relocation.target() else { return None };
                let target = file.symbol_by_index(target).ok()?;
                Some((offset, (target.section_index()?.0, target.address())))
            })
            .collect();
        let mut function =
            Function { name: symbol.name().expect("a name").to_owned(), ..Function::default() };
        // Registers that have just become copies of the frame pointer.
        let mut copies = [false; 16];
        let mut at = symbol.address();
        while at < symbol.address() + symbol.size() {
            let instruction = Instruction::read(&code[usize::try_from(at).expect("64 bits")..]);
            let Instruction { opcode, destination, source, offset, immediate } = instruction;
            let below = |offset: i64| u64::try_from(-offset).unwrap_or_default().next_multiple_of(8);
            let base = match opcode & 7 {
                1 => source,
                2 | 3 => destination,
                _ => 0,
            };
            if base == FRAME_POINTER {
                function.stack = function.stack.max(below(offset.into()));
            }
            let was_copy = std::mem::replace(
                &mut copies[usize::from(destination)],
                opcode == MOVE && source == FRAME_POINTER,
            );
            if opcode == ADD && was_copy {
                function.stack = function.stack.max(below(immediate.into()));
            }
            if opcode == CALL && source == 1 {
                let (section, base) = relocations.get(&at).copied().unwrap_or((index.0, at));
                let target = base.wrapping_add_signed((i64::from(immediate) + 1) * 8);
                function.calls.push((section, target));
            }
            at += if opcode == LOAD_WIDE { 16 } else { 8 };
        }
        functions.insert((index.0, symbol.address()), function);
    }
    functions
}

/// The stack of the most expensive chain of calls that begins there, and the names in it.
fn deepest(functions: &BTreeMap<Place, Function>, place: Place) -> (u64, Vec<&str>) {
    let function = &functions[&place];
    let below = function.calls.iter().map(|call| deepest(functions, *call)).max().unwrap_or_default();
    let own = function.stack.max(1).next_multiple_of(STEP);
    (own + below.0, [vec![function.name.as_str()], below.1].concat())
}

#[test]
fn no_chain_of_calls_takes_more_stack_than_older_kernels_allow() {
    let file = object::File::parse(OBJECT).expect("an object");
    let functions = functions(&file);
    for program in ProgramKind::ALL.map(ProgramKind::name).into_iter().chain([EARLY]) {
        let place = functions.iter().find(|(_, function)| function.name == program).expect("the program").0;
        let (stack, chain) = deepest(&functions, *place);
        assert!(chain.len() > 1 && stack > 64, "{program} makes calls: {chain:?}");
        assert!(stack <= LIMIT, "{stack} bytes: {chain:#?}");
    }
}
