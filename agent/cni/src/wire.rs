//! Frames on the agent's plugin socket: four bytes of length, most significant first, and JSON.
//!
//! The plugin sends a [`Call`](crate::Call) and receives an [`Answer`](crate::call::Answer). After
//! an ADD it prints the result and only then sends [`DONE`]. A connection that ends without it
//! means that the runtime has no result: the agent detaches the container again.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes of a frame's JSON: a configuration of [`MAX_CONFIG`] bytes, each escaped.
pub const MAX_FRAME: usize = 8 << 20;
/// Most bytes of a network configuration.
pub const MAX_CONFIG: usize = 1 << 20;
/// Says that the plugin has printed a result.
pub const DONE: u8 = 1;
/// Bytes of a frame's length.
pub const LENGTH: usize = 4;

/// Returns a value as a frame.
pub fn frame(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; LENGTH];
    serde_json::to_writer(&mut frame, value)?;
    let length = frame.len() - LENGTH;
    let length = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME);
    let length = length.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
    frame[..LENGTH].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// Returns the length that a frame's head announces, in bytes.
pub fn length(head: [u8; LENGTH]) -> io::Result<usize> {
    let length = u32::from_be_bytes(head) as usize;
    if length <= MAX_FRAME { Ok(length) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Sends a value as a frame.
pub fn send(stream: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    stream.write_all(&frame(value)?)
}

/// Receives a frame.
pub fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut head = [0; LENGTH];
    stream.read_exact(&mut head)?;
    let mut body = vec![0; length(head)?];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_received() {
        let mut stream = Vec::new();
        send(&mut stream, &("a", 1)).unwrap();
        assert_eq!(receive::<(String, u8)>(&mut stream.as_slice()).unwrap(), ("a".to_owned(), 1));
    }

    #[test]
    fn a_frame_that_announces_too_much_or_ends_early_is_an_error() {
        assert!(receive::<String>(&mut [0xff; 64].as_slice()).is_err());
        assert!(receive::<String>(&mut [0, 0, 0, 9, b'"'].as_slice()).is_err());
        assert!(receive::<String>(&mut [].as_slice()).is_err());
    }
}
