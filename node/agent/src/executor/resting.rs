//! Sockets at rest: any number of them behind one poll descriptor, which is all that the executor watches. One that says nothing costs an
//! entry in the kernel's table and no task, no timer, no processor time.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{Timespec, epoll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// News that are taken at once.
const AT_ONCE: usize = 64;

/// Sockets that are watched for something to read.
#[derive(Debug)]
pub(crate) struct RestingSockets {
    poll: AsyncFd<OwnedFd>,
}

impl RestingSockets {
    /// None yet. To be made on the executor that is to watch them.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(crate) fn new() -> io::Result<RestingSockets> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(RestingSockets { poll: super::net::watch(poll, Interest::READABLE)? })
    }

    /// Watches a socket, which [`RestingSockets::woken`] calls `number`.
    ///
    /// # Errors
    /// Out of memory, or over the system's limit of watched files (`fs.epoll.max_user_watches`).
    pub(crate) fn add(&self, socket: impl AsFd, number: u64) -> io::Result<()> {
        Ok(epoll::add(&self.poll, socket, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?)
    }

    /// Watches it no more. Before it is closed, and as soon as it woke.
    pub(crate) fn remove(&self, socket: impl AsFd) {
        // It fails only where there is nothing to remove.
        let _ = epoll::delete(&self.poll, socket);
    }

    /// Waits until there is something to read, or the end of something; whose. Each is to be removed before this is called again.
    pub(crate) async fn woken(&self) -> io::Result<Vec<u64>> {
        loop {
            let mut guard = self.poll.readable().await?;
            let mut events = Vec::with_capacity(AT_ONCE);
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&now)) {
                Ok(0) => guard.clear_ready(),
                Ok(_) => return Ok(events.iter().map(|event| event.data.u64()).collect()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::super::tests::on_executor;
    use super::super::within;
    use super::*;

    #[test]
    fn only_who_speaks_or_leaves_is_told_and_no_longer_than_it_is_watched() {
        on_executor(|()| async {
            let resting = RestingSockets::new().unwrap();
            let pairs: Vec<_> = (0..200).map(|_| UnixStream::pair().unwrap()).collect();
            for (number, (ours, _)) in pairs.iter().enumerate() {
                resting.add(ours, number as u64).unwrap();
            }
            let soon = Duration::from_millis(50);
            assert!(within(soon, resting.woken()).await.is_none(), "nobody said anything");
            (&pairs[150].1).write_all(b"x").unwrap();
            pairs[7].1.shutdown(std::net::Shutdown::Both).unwrap();
            let mut woken = resting.woken().await.unwrap();
            woken.sort_unstable();
            assert_eq!(woken, [7, 150]);
            assert_eq!(resting.woken().await.unwrap().len(), 2, "they are still readable");
            resting.remove(&pairs[7].0);
            resting.remove(&pairs[150].0);
            assert!(within(soon, resting.woken()).await.is_none());
            for (_, theirs) in &pairs {
                let _ = (&mut &*theirs).write_all(b"x");
            }
            let mut seen = std::collections::BTreeSet::new();
            while seen.len() < 198 {
                for number in resting.woken().await.unwrap() {
                    resting.remove(&pairs[usize::try_from(number).unwrap()].0);
                    assert!(seen.insert(number));
                }
            }
        });
    }
}
