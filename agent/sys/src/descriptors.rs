//! Descriptors that one process passes to another over a unix socket (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Most descriptors of one message.
pub const MAX: usize = 64;

/// Sends bytes, at least one, with descriptors; returns how many bytes were sent.
///
/// The descriptors arrive with the first byte.
pub fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    // The space is a little larger, for alignment: more than the receiver has room for may fit.
    if descriptors.len() > MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Receives bytes, and appends the descriptors that came with them; returns how many bytes, 0 at
/// the end of the stream.
pub fn receive(stream: &UnixStream, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let slices = &mut [IoSliceMut::new(bytes)];
        let received = match recvmsg(stream, slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            received => received?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        return Ok(received.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_the_bytes_that_it_was_sent_with() {
        let (one, other) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        file.rewind().unwrap();
        assert_eq!(send(&one, b"F", &[file.as_fd()]).unwrap(), 1);
        drop((one, file));
        let (mut byte, mut descriptors) = ([0], Vec::new());
        assert_eq!(receive(&other, &mut byte, &mut descriptors).unwrap(), 1);
        let mut text = String::new();
        File::from(descriptors.pop().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!((byte, text.as_str(), descriptors.len()), (*b"F", "content", 0));
        assert_eq!(receive(&other, &mut byte, &mut descriptors).unwrap(), 0);
    }

    #[test]
    fn more_descriptors_than_fit_are_refused() {
        let (one, _other) = UnixStream::pair().unwrap();
        let descriptors = vec![one.as_fd(); MAX + 1];
        assert_eq!(send(&one, b"F", &descriptors).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
