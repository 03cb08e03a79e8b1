//! A fault within mapped files says which pack it was before it ends the process.
//!
//! Reading a page of a mapping whose file was cut, or whose disk fails, raises SIGBUS. Nothing can make such a read
//! return; but the process can name the cause before it ends.

use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Mappings watched at once; a further one faults without a word.
const PLACES: usize = 256;

/// One watched mapping.
struct Place {
    start: AtomicUsize,
    end: AtomicUsize,
    text: AtomicPtr<u8>,
    length: AtomicUsize,
}

static WATCHED: [Place; PLACES] = [const {
    Place {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        text: AtomicPtr::new(std::ptr::null_mut()),
        length: AtomicUsize::new(0),
    }
}; PLACES];

/// What stood in the handler's place before; given back to it when the fault is none of ours.
static mut BEFORE: std::mem::MaybeUninit<libc::sigaction> = std::mem::MaybeUninit::zeroed();

/// Watches a mapping until it is dropped.
#[derive(Debug)]
pub(crate) struct Guard(Option<usize>);

impl Guard {
    /// Watches `bytes` bytes from `start` on; a fault there writes `message` to standard error.
    pub fn new(start: usize, bytes: usize, message: String) -> Self {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(install);
        let place = WATCHED
            .iter()
            .position(|place| place.start.compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed).is_ok());
        if let Some(at) = place {
            // Kept for good: a handler on another thread may be reading it.
            let text: &'static str = String::leak(message);
            WATCHED[at].length.store(text.len(), Ordering::Release);
            WATCHED[at].text.store(text.as_ptr().cast_mut(), Ordering::Release);
            WATCHED[at].end.store(start + bytes, Ordering::Release);
        }
        Self(place)
    }

    /// Watches nothing.
    pub fn none() -> Self {
        Self(None)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(at) = self.0 {
            WATCHED[at].end.store(0, Ordering::Release);
            WATCHED[at].start.store(0, Ordering::Release);
        }
    }
}

fn install() {
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and calls async-signal-safe functions alone;
    // `BEFORE` is written here, once, before the handler can run.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, std::ptr::null(), (&raw mut BEFORE).cast());
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

extern "C" fn handle(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid `info`; the texts are leaked, so they live; `write` and `sigaction` are
    // async-signal-safe. On return the access faults again, under the action that was set here.
    unsafe {
        let address = (*info).si_addr() as usize;
        for place in &WATCHED {
            if address >= place.start.load(Ordering::Acquire) && address < place.end.load(Ordering::Acquire) {
                let (text, length) = (place.text.load(Ordering::Acquire), place.length.load(Ordering::Acquire));
                libc::write(2, text.cast(), length);
                let mut default: libc::sigaction = std::mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(libc::SIGBUS, &raw const default, std::ptr::null_mut());
                return;
            }
        }
        libc::sigaction(libc::SIGBUS, (&raw const BEFORE).cast(), std::ptr::null_mut());
    }
}
