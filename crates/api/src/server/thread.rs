//! The thread that serves all connections, and its end.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use tokio::runtime::Builder;
use tokio::sync::oneshot;

use super::ServerError;
use super::accept::Acceptor;
use super::events::EventSender;

/// The thread's name.
const NAME: &str = "api";

/// Most of it is for JSON that nests as deeply as the parser allows. Pages that are not touched cost nothing.
const STACK_BYTES: usize = 512 << 10;

/// Events that are taken from the kernel at once.
const EVENTS: usize = 128;

/// Turns that every connection gets at the end, so that answers and events given before it are still sent, as far as the
/// client's socket takes them.
const LAST_TURNS: usize = 16;

/// The server's thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct ServerThread {
    events: EventSender,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ServerThread {
    /// Starts the thread. All descriptors are made before, so that `set_up` can forbid it to make some.
    pub fn spawn(
        listener: UnixListener,
        acceptor: Acceptor,
        events: EventSender,
        set_up: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<Self, ServerError> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_io_events_per_tick(EVENTS)
            .build()
            .map_err(ServerError::Start)?;
        let listener = {
            let _context = runtime.enter();
            tokio::net::UnixListener::from_std(listener).map_err(ServerError::Start)?
        };
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(NAME.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let result = set_up();
                let failed = result.is_err();
                // Fails when nobody waits any more, and then there is nobody to tell.
                let _ = ready.send(result);
                if !failed {
                    runtime.block_on(async {
                        acceptor.run(&listener, stopped).await;
                        drop(listener);
                        for _ in 0..LAST_TURNS {
                            tokio::task::yield_now().await;
                        }
                    });
                }
            })
            .map_err(ServerError::Start)?;
        // Dropped in case of an error, which waits for the thread and all it has.
        let server = Self { events, stop: Some(stop), thread: Some(thread) };
        let result = is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended at once")));
        result.map_err(ServerError::SetUp)?;
        Ok(server)
    }
}

impl Drop for ServerThread {
    fn drop(&mut self) {
        self.events.end();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Fails when the thread has panicked, which it has said by itself.
            let _ = thread.join();
        }
    }
}
