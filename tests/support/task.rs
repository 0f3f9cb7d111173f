//! A future that is polled by hand.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};

#[derive(Default)]
struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A future that is polled by hand, and what has woken its task.
pub struct Task<F> {
    future: Pin<Box<F>>,
    count: Arc<Count>,
}

impl<F: Future> Task<F> {
    pub fn new(future: F) -> Self {
        Self { future: Box::pin(future), count: Arc::default() }
    }

    pub fn poll(&mut self) -> Poll<F::Output> {
        let waker = Waker::from(Arc::clone(&self.count));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    /// Polls a future that is not ready.
    pub fn begun(mut self) -> Self {
        assert!(self.poll().is_pending());
        self
    }

    pub fn ready(&mut self) -> F::Output {
        match self.poll() {
            Poll::Ready(it) => it,
            Poll::Pending => panic!("not ready"),
        }
    }

    /// How often it was woken since it was last asked.
    pub fn woken(&self) -> u32 {
        self.count.0.swap(0, Ordering::SeqCst)
    }
}
