//! The queue of one model version.
//!
//! Jobs belong to the queue, not to a channel's buffer: only so can a job be unlinked when its caller goes away,
//! overtaken by a more urgent one, or failed when the queue closes. Channels carry wake-ups and nothing else, so
//! nothing is lost when the thread at the other end dies.
//!
//! Every transition of a job happens under the one lock and increments exactly one counter:
//!
//! ```text
//! push ─┬─> Waiting ──> Queued ──> Running ──> ok | error
//!       │      └──────────┴───────────┴──────> cancelled | expired     (a running one finishes detached)
//!       │      └──────────┴──────────────────> closed
//!       └─> rejected | expired | closed
//! ```
//!
//! so `submitted = waiting + queued + running + ok + error + cancelled + expired + rejected + closed` holds whenever
//! the lock is free. No payload, no reply and no waker is touched under the lock: whatever leaves the queue is
//! handed to the caller of the method, who drops or answers it.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::{Sender, TrySendError};
use smallvec::SmallVec;

use crate::{Limits, Outcomes, Priority, Stage};

#[cfg(test)]
mod tests;

/// What a queue is made of.
pub(crate) trait Job {
    /// What a thread needs to do the job; the queue owns it until a thread takes it.
    type Payload;
    /// Where the answer goes; the queue owns it until the job is over, so that whoever ends the job can answer.
    type Reply: Reply;
    /// Why a queue was closed.
    type Cause: Clone;
    /// Wakes one thread.
    type Wake: Wake;
}

/// The way back to whoever waits for a job.
pub(crate) trait Reply {
    /// Whether nobody waits any more.
    fn is_abandoned(&self) -> bool;
}

/// Wakes the thread that owns the other end; must not block, and may be called when that thread is gone.
pub(crate) trait Wake {
    fn wake(&self);
}

/// A channel of capacity one: a wake-up that is there already is enough.
impl Wake for Sender<()> {
    fn wake(&self) {
        match self.try_send(()) {
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }
}

/// Names a job for as long as the queue knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    index: u32,
    seq: u64,
}

/// A job on its way in.
pub(crate) struct Offer<J: Job> {
    pub(crate) priority: Priority,
    pub(crate) bytes: usize,
    pub(crate) submitted: Instant,
    pub(crate) deadline: Option<Instant>,
    pub(crate) payload: J::Payload,
    pub(crate) reply: J::Reply,
}

/// What to do with a job that does not fit at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenFull {
    Wait,
    Refuse,
}

/// Why a job was not let in. It has been counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal<C> {
    /// No room, and the caller did not want to wait.
    Full,
    /// It would not fit into the empty queue.
    TooLarge {
        limit: usize,
    },
    /// Its deadline has passed.
    Expired,
    Closed(C),
}

/// A job that was not let in, with what it was made of.
pub(crate) struct Refused<J: Job> {
    pub(crate) refusal: Refusal<J::Cause>,
    pub(crate) payload: J::Payload,
    pub(crate) reply: J::Reply,
}

/// A job that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pushed {
    pub(crate) key: Key,
    /// Whether no thread was idle: one more thread would help.
    pub(crate) all_busy: bool,
}

/// What is left of a job that ended without running to its end.
#[must_use = "somebody waits for the reply"]
pub(crate) struct Removed<J: Job> {
    /// `None` if a thread has it.
    pub(crate) payload: Option<J::Payload>,
    /// `None` if it was answered before.
    pub(crate) reply: Option<J::Reply>,
    pub(crate) stage: Stage,
}

/// A job for a thread.
#[must_use = "the job stays in the running state until it is finished"]
pub(crate) struct Taken<J: Job> {
    pub(crate) key: Key,
    pub(crate) payload: J::Payload,
}

/// What a thread does next.
pub(crate) enum Next<J: Job> {
    Run(Taken<J>),
    /// Sleep until woken.
    Idle,
    /// The queue is closed, or drained and empty.
    Stop,
}

/// One turn of a thread.
pub(crate) struct Turn<J: Job> {
    /// The reply of the job that was finished; `None` if its caller has had an answer or has gone.
    pub(crate) reply: Option<J::Reply>,
    /// Jobs whose deadline passed while they were queued: to be answered.
    pub(crate) expired: Vec<Removed<J>>,
    /// Jobs nobody waits for: to be dropped.
    pub(crate) abandoned: Vec<Removed<J>>,
    pub(crate) next: Next<J>,
}

/// How a job ended that ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Ok,
    Error,
}

/// A consistent picture of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Jobs admitted and not started, by priority.
    pub(crate) depth: [usize; Priority::COUNT],
    /// Input bytes of those.
    pub(crate) bytes: usize,
    /// Callers that wait for admission.
    pub(crate) waiting: usize,
    pub(crate) running: usize,
    pub(crate) outcomes: [Outcomes; Priority::COUNT],
    /// Jobs that ran to their end with nobody waiting any more.
    pub(crate) detached: u64,
}

pub(crate) struct Queue<J: Job> {
    state: Mutex<State<J>>,
    wakes: Box<[J::Wake]>,
}

impl<J: Job> Queue<J> {
    /// An open queue served by as many threads as there are wakers.
    pub(crate) fn new(limits: Limits, wakes: Box<[J::Wake]>) -> Self {
        let idle = Idle { stack: Vec::with_capacity(wakes.len()), member: vec![false; wakes.len()] };
        Self { state: Mutex::new(State::new(limits, idle)), wakes }
    }

    /// Lets a job in, or says why not and gives it back.
    pub(crate) fn push(&self, offer: Offer<J>, when_full: WhenFull) -> Result<Pushed, Refused<J>> {
        let (result, woken) = {
            let mut state = self.lock();
            let result = state.push(offer, when_full);
            (result, state.woken())
        };
        self.wake(&woken);
        result.map(|key| Pushed { key, all_busy: woken.is_empty() })
    }

    /// Finishes the job that `worker` ran, if any, and finds the next one: one visit to the lock for both.
    pub(crate) fn turn(&self, worker: usize, finished: Option<(Key, Ending)>, now: Instant) -> Turn<J> {
        let (turn, woken) = {
            let mut state = self.lock();
            let turn = state.turn(worker, finished, now);
            (turn, state.woken())
        };
        self.wake(&woken);
        turn
    }

    /// Ends a running job without taking the next.
    pub(crate) fn finish(&self, key: Key, ending: Ending) -> Option<J::Reply> {
        self.lock().finish(key, ending)
    }

    /// Unlinks a job whose caller went away. Slot and bytes are free when this returns. `None`: it is over already.
    pub(crate) fn cancel(&self, key: Key) -> Option<Removed<J>> {
        self.remove(key, |outcomes| &mut outcomes.cancelled)
    }

    /// Unlinks a job whose deadline has passed. `None`: it is over already.
    pub(crate) fn expire(&self, key: Key) -> Option<Removed<J>> {
        self.remove(key, |outcomes| &mut outcomes.expired)
    }

    fn remove(&self, key: Key, count: fn(&mut Outcomes) -> &mut u64) -> Option<Removed<J>> {
        let (removed, woken) = {
            let mut state = self.lock();
            let removed = state.remove(key, count);
            (removed, state.woken())
        };
        self.wake(&woken);
        removed
    }

    /// Lets nothing more in; what is in will be served, and then the threads are told to stop.
    pub(crate) fn drain(&self, cause: J::Cause) {
        {
            let mut state = self.lock();
            if matches!(state.phase, Phase::Open) {
                state.phase = Phase::Draining(cause);
            }
        }
        self.wake_all();
    }

    /// Lets nothing more in and gives out everything that has not started. Only the first cause counts.
    pub(crate) fn close(&self, cause: J::Cause) -> Vec<Removed<J>> {
        let removed = self.lock().close(cause);
        self.wake_all();
        removed
    }

    /// Whether there is nothing to serve and never will be.
    pub(crate) fn is_finished(&self) -> bool {
        let state = self.lock();
        match state.phase {
            Phase::Open => false,
            // Whoever waits fits into the empty queue, so nobody waits at an empty one.
            Phase::Draining(_) | Phase::Closed(_) => state.queued.iter().all(|list| list.len == 0),
        }
    }

    /// To be called by a thread that ends or cannot serve for a while: another one gets its wake-up.
    pub(crate) fn leave(&self, worker: usize) {
        let woken = {
            let mut state = self.lock();
            state.idle.remove(worker);
            state.call_for_queued();
            state.woken()
        };
        self.wake(&woken);
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.lock().snapshot()
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        // No code of others runs under the lock, so a poisoned one guards a sound state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, workers: &[usize]) {
        for &worker in workers {
            self.wakes[worker].wake();
        }
    }

    fn wake_all(&self) {
        for wake in &self.wakes {
            wake.wake();
        }
    }
}

type Woken = SmallVec<[usize; 4]>;

enum Phase<C> {
    Open,
    Draining(C),
    Closed(C),
}

/// Threads that sleep, the latest on top: its caches are the warmest.
struct Idle {
    stack: Vec<usize>,
    member: Vec<bool>,
}

impl Idle {
    fn add(&mut self, worker: usize) {
        if !mem::replace(&mut self.member[worker], true) {
            self.stack.push(worker);
        }
    }

    fn pop(&mut self) -> Option<usize> {
        let worker = self.stack.pop()?;
        self.member[worker] = false;
        Some(worker)
    }

    fn remove(&mut self, worker: usize) {
        if mem::replace(&mut self.member[worker], false) {
            self.stack.retain(|&other| other != worker);
        }
    }
}

const NONE: u32 = u32::MAX;
/// A slab above this size is given back when it is empty.
const KEEP_NODES: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Free,
    Waiting,
    Queued,
    Running,
}

struct Node<J: Job> {
    /// Unique over the life of the queue, in order of arrival: with the index, it tells a job from a later one.
    seq: u64,
    place: Place,
    previous: u32,
    next: u32,
    priority: Priority,
    bytes: usize,
    deadline: Option<Instant>,
    payload: Option<J::Payload>,
    reply: Option<J::Reply>,
}

/// A doubly linked list through the nodes.
#[derive(Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
    len: usize,
    bytes: usize,
}

impl List {
    const EMPTY: Self = Self { head: NONE, tail: NONE, len: 0, bytes: 0 };
}

struct State<J: Job> {
    limits: Limits,
    phase: Phase<J::Cause>,
    nodes: Vec<Node<J>>,
    free: Vec<u32>,
    arrivals: u64,
    queued: [List; Priority::COUNT],
    waiting: [List; Priority::COUNT],
    running: usize,
    /// Counted for the fairness rule.
    dequeues: u64,
    admissions: u64,
    outcomes: [Outcomes; Priority::COUNT],
    detached: u64,
    idle: Idle,
    /// Threads to wake once the lock is released.
    woken: Woken,
}

impl<J: Job> State<J> {
    fn new(limits: Limits, idle: Idle) -> Self {
        Self {
            limits,
            phase: Phase::Open,
            nodes: Vec::new(),
            free: Vec::new(),
            arrivals: 0,
            queued: [List::EMPTY; Priority::COUNT],
            waiting: [List::EMPTY; Priority::COUNT],
            running: 0,
            dequeues: 0,
            admissions: 0,
            outcomes: [Outcomes::default(); Priority::COUNT],
            detached: 0,
            idle,
            woken: Woken::new(),
        }
    }

    fn woken(&mut self) -> Woken {
        mem::take(&mut self.woken)
    }

    fn push(&mut self, offer: Offer<J>, when_full: WhenFull) -> Result<Key, Refused<J>> {
        let class = offer.priority.index();
        self.outcomes[class].submitted += 1;
        if let Err(refusal) = self.check(&offer) {
            return Err(Refused { refusal, payload: offer.payload, reply: offer.reply });
        }
        let index = self.insert(offer);
        // Nobody waits and there is room: the common case needs no detour.
        if self.waiting.iter().all(|list| list.len == 0) && self.fits(index) {
            self.enqueue(index);
        } else {
            self.link(Place::Waiting, index);
            self.admit();
            if when_full == WhenFull::Refuse && self.nodes[index as usize].place == Place::Waiting {
                self.unlink(index);
                self.outcomes[class].rejected += 1;
                let (Some(payload), Some(reply)) = self.vacate(index) else {
                    unreachable!("a waiting job has its payload and its reply")
                };
                return Err(Refused { refusal: Refusal::Full, payload, reply });
            }
        }
        Ok(Key { index, seq: self.nodes[index as usize].seq })
    }

    /// What no waiting can cure.
    fn check(&mut self, offer: &Offer<J>) -> Result<(), Refusal<J::Cause>> {
        let outcomes = &mut self.outcomes[offer.priority.index()];
        if let Phase::Draining(cause) | Phase::Closed(cause) = &self.phase {
            outcomes.closed += 1;
            return Err(Refusal::Closed(cause.clone()));
        }
        if offer.deadline.is_some_and(|deadline| deadline <= offer.submitted) {
            outcomes.expired += 1;
            return Err(Refusal::Expired);
        }
        let limit = self.limits.largest_job(offer.priority);
        if offer.bytes > limit {
            outcomes.rejected += 1;
            return Err(Refusal::TooLarge { limit });
        }
        Ok(())
    }

    fn turn(&mut self, worker: usize, finished: Option<(Key, Ending)>, now: Instant) -> Turn<J> {
        self.idle.remove(worker);
        let reply = finished.and_then(|(key, ending)| self.finish(key, ending));
        let mut turn = Turn { reply, expired: Vec::new(), abandoned: Vec::new(), next: Next::Idle };
        while let Some(class) = self.choose_queued() {
            let index = self.queued[class].head;
            self.unlink(index);
            // At once: else the queue might look empty below while somebody waits to get in.
            self.admit();
            let node = &self.nodes[index as usize];
            if node.deadline.is_some_and(|deadline| deadline <= now) {
                self.outcomes[class].expired += 1;
                turn.expired.push(self.take_out(index, Stage::Queued));
            } else if node.reply.as_ref().is_none_or(Reply::is_abandoned) {
                self.outcomes[class].cancelled += 1;
                turn.abandoned.push(self.take_out(index, Stage::Queued));
            } else {
                self.dequeues += 1;
                turn.next = self.start(index);
                break;
            }
        }
        if let Next::Idle = turn.next {
            match self.phase {
                Phase::Open => self.idle.add(worker),
                Phase::Draining(_) | Phase::Closed(_) => turn.next = Next::Stop,
            }
        }
        turn
    }

    fn start(&mut self, index: u32) -> Next<J> {
        let node = &mut self.nodes[index as usize];
        node.place = Place::Running;
        let key = Key { index, seq: node.seq };
        match node.payload.take() {
            Some(payload) => {
                self.running += 1;
                Next::Run(Taken { key, payload })
            }
            None => unreachable!("a queued job has its payload"),
        }
    }

    fn finish(&mut self, key: Key, ending: Ending) -> Option<J::Reply> {
        let node = self.nodes.get(key.index as usize)?;
        if node.seq != key.seq || node.place != Place::Running {
            return None;
        }
        let class = node.priority.index();
        self.running -= 1;
        let (_, reply) = self.vacate(key.index);
        match (&reply, ending) {
            (None, _) => self.detached += 1,
            (Some(_), Ending::Ok) => self.outcomes[class].ok += 1,
            (Some(_), Ending::Error) => self.outcomes[class].error += 1,
        }
        reply
    }

    fn remove(&mut self, key: Key, count: fn(&mut Outcomes) -> &mut u64) -> Option<Removed<J>> {
        let node = self.nodes.get_mut(key.index as usize).filter(|node| node.seq == key.seq)?;
        let outcomes = &mut self.outcomes[node.priority.index()];
        match node.place {
            Place::Free => None,
            Place::Running => {
                let reply = node.reply.take()?;
                *count(outcomes) += 1;
                Some(Removed { payload: None, reply: Some(reply), stage: Stage::Running })
            }
            place @ (Place::Waiting | Place::Queued) => {
                *count(outcomes) += 1;
                let stage = if place == Place::Waiting { Stage::Admission } else { Stage::Queued };
                self.unlink(key.index);
                let removed = self.take_out(key.index, stage);
                self.admit();
                Some(removed)
            }
        }
    }

    fn close(&mut self, cause: J::Cause) -> Vec<Removed<J>> {
        if let Phase::Closed(_) = self.phase {
            return Vec::new();
        }
        self.phase = Phase::Closed(cause);
        let mut removed = Vec::new();
        for class in 0..Priority::COUNT {
            for (place, stage) in [(Place::Queued, Stage::Queued), (Place::Waiting, Stage::Admission)] {
                while self.list(place, class).head != NONE {
                    let index = self.list(place, class).head;
                    self.unlink(index);
                    self.outcomes[class].closed += 1;
                    removed.push(self.take_out(index, stage));
                }
            }
        }
        removed
    }

    /// Lets in those who wait, as far as there is room.
    fn admit(&mut self) {
        while let Some(class) = self.choose_waiting() {
            let index = self.waiting[class].head;
            // Who is chosen waits until he fits, and nobody small slips past: a big job would wait for ever.
            if !self.fits(index) {
                break;
            }
            self.unlink(index);
            self.admissions += 1;
            self.enqueue(index);
        }
    }

    /// The class that is served next: the highest, but on every n-th occasion that of the oldest job.
    fn choose_queued(&self) -> Option<usize> {
        self.choose(self.dequeues, |class| (self.queued[class].len > 0).then_some(self.queued[class].head))
    }

    /// By the same rule, among the classes that are below their own limits.
    fn choose_waiting(&self) -> Option<usize> {
        if self.waiting.iter().all(|list| list.len == 0) {
            return None;
        }
        self.choose(self.admissions, |class| {
            let index = self.waiting[class].head;
            (index != NONE && self.fits_class(index)).then_some(index)
        })
    }

    fn choose(&self, turns: u64, head: impl Fn(usize) -> Option<u32>) -> Option<usize> {
        let mut heads = (0..Priority::COUNT).filter_map(|class| Some((class, head(class)?)));
        let every = u64::from(self.limits.fairness);
        if every != 0 && turns % every == every - 1 {
            heads.min_by_key(|&(_, index)| self.nodes[index as usize].seq).map(|(class, _)| class)
        } else {
            heads.next().map(|(class, _)| class)
        }
    }

    fn fits(&self, index: u32) -> bool {
        let bytes: usize = self.queued.iter().map(|list| list.bytes).sum();
        let jobs: usize = self.queued.iter().map(|list| list.len).sum();
        let limit = self.limits.total();
        jobs < limit.jobs && self.nodes[index as usize].bytes <= limit.bytes - bytes && self.fits_class(index)
    }

    fn fits_class(&self, index: u32) -> bool {
        let node = &self.nodes[index as usize];
        let limit = self.limits.of(node.priority);
        let list = &self.queued[node.priority.index()];
        list.len < limit.jobs && node.bytes <= limit.bytes - list.bytes
    }

    fn enqueue(&mut self, index: u32) {
        self.link(Place::Queued, index);
        if let Some(worker) = self.idle.pop() {
            self.woken.push(worker);
        }
    }

    /// Wakes one thread per queued job, as far as any sleep.
    fn call_for_queued(&mut self) {
        let jobs: usize = self.queued.iter().map(|list| list.len).sum();
        for _ in 0..jobs {
            let Some(worker) = self.idle.pop() else { break };
            self.woken.push(worker);
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            depth: self.queued.map(|list| list.len),
            bytes: self.queued.iter().map(|list| list.bytes).sum(),
            waiting: self.waiting.iter().map(|list| list.len).sum(),
            running: self.running,
            outcomes: self.outcomes,
            detached: self.detached,
        }
    }

    // ---- slab and lists ----

    fn insert(&mut self, offer: Offer<J>) -> u32 {
        self.arrivals += 1;
        let node = Node {
            seq: self.arrivals,
            place: Place::Free,
            previous: NONE,
            next: NONE,
            priority: offer.priority,
            bytes: offer.bytes,
            deadline: offer.deadline,
            payload: Some(offer.payload),
            reply: Some(offer.reply),
        };
        match self.free.pop() {
            Some(index) => {
                self.nodes[index as usize] = node;
                index
            }
            None => {
                let index = u32::try_from(self.nodes.len()).unwrap_or(NONE);
                assert!(index < NONE, "more than 2^32 jobs in one queue");
                self.nodes.push(node);
                index
            }
        }
    }

    fn vacate(&mut self, index: u32) -> (Option<J::Payload>, Option<J::Reply>) {
        let node = &mut self.nodes[index as usize];
        node.place = Place::Free;
        let parts = (node.payload.take(), node.reply.take());
        self.free.push(index);
        if self.free.len() == self.nodes.len() && self.nodes.len() > KEEP_NODES {
            self.nodes = Vec::new();
            self.free = Vec::new();
        }
        parts
    }

    fn take_out(&mut self, index: u32, stage: Stage) -> Removed<J> {
        let (payload, reply) = self.vacate(index);
        Removed { payload, reply, stage }
    }

    fn list(&mut self, place: Place, class: usize) -> &mut List {
        match place {
            Place::Queued => &mut self.queued[class],
            Place::Waiting => &mut self.waiting[class],
            Place::Free | Place::Running => unreachable!("only waiting and queued jobs are in a list"),
        }
    }

    fn link(&mut self, place: Place, index: u32) {
        let (class, bytes) = {
            let node = &mut self.nodes[index as usize];
            node.place = place;
            (node.priority.index(), node.bytes)
        };
        let list = self.list(place, class);
        let tail = mem::replace(&mut list.tail, index);
        list.len += 1;
        list.bytes += bytes;
        if tail == NONE {
            list.head = index;
        } else {
            self.nodes[tail as usize].next = index;
        }
        let node = &mut self.nodes[index as usize];
        node.previous = tail;
        node.next = NONE;
    }

    fn unlink(&mut self, index: u32) {
        let node = &self.nodes[index as usize];
        let (place, class, bytes) = (node.place, node.priority.index(), node.bytes);
        let (previous, next) = (node.previous, node.next);
        let list = self.list(place, class);
        list.len -= 1;
        list.bytes -= bytes;
        if previous == NONE {
            list.head = next;
        }
        if next == NONE {
            list.tail = previous;
        }
        if previous != NONE {
            self.nodes[previous as usize].next = next;
        }
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
    }
}
