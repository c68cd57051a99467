//! One request over netlink and its answers, as bytes: the layers above use two generations of
//! message types.

use std::io;

use netlink_sys::{Socket, SocketAddr};

/// Bytes of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Sends `request`, a whole message with its header, to the kernel side of `protocol`, and returns
/// the messages that answer it, up to the acknowledgement or the end of the dump. The request must
/// ask for either.
pub(super) fn request(protocol: isize, request: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    let mut answers = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while let Some((len, kind)) = header(rest) {
            let message = rest.get(..len).ok_or(io::ErrorKind::InvalidData)?;
            match kind {
                DONE => return Ok(answers),
                ERROR => {
                    let code = message.get(HEADER..).and_then(|code| code.first_chunk());
                    return match code.map(|code| i32::from_ne_bytes(*code)) {
                        Some(0) => Ok(answers),
                        Some(code) => Err(io::Error::from_raw_os_error(-code)),
                        None => Err(io::ErrorKind::InvalidData.into()),
                    };
                }
                _ => answers.push(message.to_vec()),
            }
            // Messages begin at multiples of four.
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Length and type of the message at the beginning.
fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let head = bytes.first_chunk::<HEADER>()?;
    let len = usize::try_from(u32::from_ne_bytes([head[0], head[1], head[2], head[3]])).ok()?;
    (len >= HEADER).then_some((len, u16::from_ne_bytes([head[4], head[5]])))
}
