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
//!
//! reserve ──> Waiting ──> Reserved ──> Queued                          (a job whose payload comes later)
//! ```
//!
//! so `submitted = waiting + reserved + queued + running + ok + error + cancelled + expired + rejected + closed` holds
//! whenever the lock is free. No payload, no reply and no waker is touched under the lock: whatever leaves the queue is
//! handed to the caller of the method, who drops or answers it.

use std::mem;
use std::sync::PoisonError;
#[cfg(not(coreml_loom))]
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};
#[cfg(coreml_loom)]
use loom::sync::{Mutex, MutexGuard};
use smallvec::SmallVec;

use crate::{Limits, Outcomes, Priority, Stage};

#[cfg(test)]
#[cfg(coreml_loom)]
mod model;
#[cfg(test)]
#[cfg(not(coreml_loom))]
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
    /// Tells whoever waits for a reservation that it is there; dropped untold, that it will not come.
    type Grant: Grant;

    /// Whether a thread may do `other` together with `first`.
    fn joins(first: &Self::Payload, other: &Self::Payload) -> bool;
}

/// The news that a reservation has its place.
pub(crate) trait Grant {
    fn grant(self);
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
    /// How long a job is expected to take, if a deadline that cannot be kept is to be refused at once.
    pub(crate) expected: Option<Duration>,
    pub(crate) payload: J::Payload,
    pub(crate) reply: J::Reply,
}

/// Jobs that are done together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gather {
    pub(crate) most: usize,
    /// How long the first job waits for company; one of the highest class never does.
    pub(crate) delay: Duration,
}

/// What to do with a job that does not fit at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenFull {
    Wait,
    Refuse,
}

/// Why a job was not let in. It has been counted, unless another queue is to count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal<C> {
    /// No room, and the caller did not want to wait.
    Full,
    /// It would not fit into the empty queue.
    TooLarge {
        limit: usize,
    },
    /// Its deadline has passed, or would before its turn.
    Expired,
    Closed(C),
    /// Another queue has taken over, and the job belongs there: it has not been counted here.
    Superseded,
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
    /// `None` if it was answered before, or is a reservation.
    pub(crate) reply: Option<J::Reply>,
    /// Of a reservation that still waits.
    #[allow(dead_code, reason = "held so that it is dropped outside the lock")]
    pub(crate) grant: Option<J::Grant>,
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
    /// Sleep until woken, but no longer than this: jobs wait for company.
    Hold(Instant),
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
    /// Places that are held for jobs to come.
    pub(crate) reserved: usize,
    /// Input bytes of both.
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
    pub(crate) fn new(limits: Limits, gather: Option<Gather>, wakes: Box<[J::Wake]>) -> Self {
        let idle = Idle { stack: Vec::with_capacity(wakes.len()), member: vec![false; wakes.len()] };
        Self { state: Mutex::new(State::new(limits, gather, idle)), wakes }
    }

    /// Lets a job in, or says why not and gives it back.
    pub(crate) fn push(&self, offer: Offer<J>, when_full: WhenFull) -> Result<Pushed, Refused<J>> {
        let (result, all_busy) = self.change(|state| state.push(offer, when_full));
        result.map(|key| Pushed { key, all_busy })
    }

    /// Asks for a place for a job to come. The grant is told as soon as there is one, perhaps before this returns.
    pub(crate) fn reserve(
        &self,
        priority: Priority,
        bytes: usize,
        now: Instant,
        grant: J::Grant,
    ) -> Result<Key, Refusal<J::Cause>> {
        let (result, _) = self.change(|state| state.reserve(priority, bytes, now, grant));
        // Its grant is dropped here, outside the lock.
        result.map_err(|(refusal, _grant)| refusal)
    }

    /// Puts a job into its reserved place; `offer.bytes` must not exceed what was reserved. `Err`: the place is lost.
    pub(crate) fn fill(&self, key: Key, offer: Offer<J>) -> Result<Pushed, Offer<J>> {
        let (result, all_busy) = self.change(|state| state.fill(key, offer));
        result.map(|key| Pushed { key, all_busy })
    }

    /// Takes more jobs of the class of the one just taken, in their order, for as long as they join it.
    pub(crate) fn gather(&self, first: &Taken<J>, now: Instant) -> Vec<Taken<J>> {
        self.change(|state| state.gather(first, now)).0
    }

    /// Finishes the job that `worker` ran, if any, and finds the next one: one visit to the lock for both.
    pub(crate) fn turn(&self, worker: usize, finished: Option<(Key, Ending)>, now: Instant) -> Turn<J> {
        self.change(|state| state.turn(worker, finished, now)).0
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
        self.change(|state| state.remove(key, count)).0
    }

    /// Lets nothing more in; what is in will be served, and then the threads are told to stop. Reservations are lost.
    pub(crate) fn drain(&self, cause: J::Cause) -> Vec<Removed<J>> {
        self.wind_down(Phase::Draining(cause))
    }

    /// As a drain, but who comes later is sent to the queue that has taken over.
    pub(crate) fn supersede(&self) -> Vec<Removed<J>> {
        self.wind_down(Phase::Superseded)
    }

    fn wind_down(&self, phase: Phase<J::Cause>) -> Vec<Removed<J>> {
        let (removed, _) = self.change(|state| {
            if !matches!(state.phase, Phase::Open | Phase::Superseded) {
                return Vec::new();
            }
            state.phase = phase;
            state.revoke()
        });
        self.wake_all();
        removed
    }

    /// Closes the queue if nothing is in it and nothing runs.
    pub(crate) fn close_if_idle(&self, cause: J::Cause) -> bool {
        let closed = {
            let mut state = self.lock();
            let is_idle = matches!(state.phase, Phase::Open) && state.is_idle();
            if is_idle {
                state.phase = Phase::Closed(cause);
            }
            is_idle
        };
        if closed {
            self.wake_all();
        }
        closed
    }

    /// Opens the queue again, if no thread has been told to stop yet.
    pub(crate) fn reopen(&self) -> bool {
        let mut state = self.lock();
        let revived = state.stops == 0;
        if revived {
            state.phase = Phase::Open;
        }
        revived
    }

    /// Lets nothing more in and gives out everything that has not started. Only the first cause counts.
    pub(crate) fn close(&self, cause: J::Cause) -> Vec<Removed<J>> {
        let removed = if crate::mutant!("close-outside-the-lock") {
            let removed = self.lock().take_all();
            #[cfg(not(coreml_loom))]
            std::thread::sleep(Duration::from_millis(5));
            self.lock().phase = Phase::Closed(cause);
            removed
        } else {
            self.lock().close(cause)
        };
        self.wake_all();
        removed
    }

    /// Whether there is nothing to serve and never will be; then the thread that asks must stop.
    pub(crate) fn stop_if_finished(&self) -> bool {
        let mut state = self.lock();
        let finished = match state.phase {
            Phase::Open => false,
            // Whoever waits fits into the empty queue, so nobody waits at an empty one.
            Phase::Draining(_) | Phase::Superseded | Phase::Closed(_) => {
                state.queued.iter().all(|list| list.len == 0)
            }
        };
        state.stops += usize::from(finished);
        finished
    }

    /// To be called by a thread that ends or cannot serve for a while: another one gets its wake-up.
    pub(crate) fn leave(&self, worker: usize) {
        self.change(|state| {
            state.idle.remove(worker);
            state.call_for_queued();
        });
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.lock().snapshot()
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        // No code of others runs under the lock, so a poisoned one guards a sound state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and tells whom that concerns once the lock is released. The second is whether no thread was woken.
    fn change<R>(&self, change: impl FnOnce(&mut State<J>) -> R) -> (R, bool) {
        let (result, Woken { workers, grants }) = {
            let mut state = self.lock();
            let result = change(&mut state);
            (result, state.woken())
        };
        for &worker in &workers {
            self.wakes[worker].wake();
        }
        for grant in grants {
            grant.grant();
        }
        (result, workers.is_empty())
    }

    fn wake_all(&self) {
        for wake in &self.wakes {
            wake.wake();
        }
    }
}

/// Whom to tell once the lock is released.
struct Woken<J: Job> {
    workers: SmallVec<[usize; 4]>,
    grants: Vec<J::Grant>,
}

impl<J: Job> Default for Woken<J> {
    fn default() -> Self {
        Self { workers: SmallVec::new(), grants: Vec::new() }
    }
}

enum Phase<C> {
    Open,
    Draining(C),
    Superseded,
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
    Reserved,
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
    submitted: Instant,
    deadline: Option<Instant>,
    /// A reservation has none, nor a reply.
    payload: Option<J::Payload>,
    reply: Option<J::Reply>,
    /// Only a reservation that waits has one.
    grant: Option<J::Grant>,
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
    gather: Option<Gather>,
    phase: Phase<J::Cause>,
    /// Threads that were told to stop.
    stops: usize,
    nodes: Vec<Node<J>>,
    free: Vec<u32>,
    arrivals: u64,
    queued: [List; Priority::COUNT],
    reserved: [List; Priority::COUNT],
    waiting: [List; Priority::COUNT],
    running: usize,
    /// Counted for the fairness rule.
    dequeues: u64,
    admissions: u64,
    outcomes: [Outcomes; Priority::COUNT],
    detached: u64,
    idle: Idle,
    woken: Woken<J>,
}

impl<J: Job> State<J> {
    fn new(limits: Limits, gather: Option<Gather>, idle: Idle) -> Self {
        Self {
            limits,
            gather,
            phase: Phase::Open,
            stops: 0,
            nodes: Vec::new(),
            free: Vec::new(),
            arrivals: 0,
            queued: [List::EMPTY; Priority::COUNT],
            reserved: [List::EMPTY; Priority::COUNT],
            waiting: [List::EMPTY; Priority::COUNT],
            running: 0,
            dequeues: 0,
            admissions: 0,
            outcomes: [Outcomes::default(); Priority::COUNT],
            detached: 0,
            idle,
            woken: Woken::default(),
        }
    }

    fn woken(&mut self) -> Woken<J> {
        mem::take(&mut self.woken)
    }

    fn push(&mut self, offer: Offer<J>, when_full: WhenFull) -> Result<Key, Refused<J>> {
        let Offer { priority, bytes, submitted, deadline, expected, payload, reply } = offer;
        let class = priority.index();
        let check = self.check(priority, bytes, submitted, deadline, expected);
        if let Err(refusal) = check {
            return Err(Refused { refusal, payload, reply });
        }
        let key = self.insert(Node {
            seq: 0,
            place: Place::Free,
            previous: NONE,
            next: NONE,
            priority,
            bytes,
            submitted,
            deadline,
            payload: Some(payload),
            reply: Some(reply),
            grant: None,
        });
        self.let_in(key.index);
        if when_full == WhenFull::Refuse && self.nodes[key.index as usize].place == Place::Waiting {
            self.unlink(key.index);
            self.outcomes[class].rejected += 1;
            let (Some(payload), Some(reply), _) = self.vacate(key.index) else {
                unreachable!("a waiting job has its payload and its reply")
            };
            return Err(Refused { refusal: Refusal::Full, payload, reply });
        }
        Ok(key)
    }

    fn reserve(
        &mut self,
        priority: Priority,
        bytes: usize,
        now: Instant,
        grant: J::Grant,
    ) -> Result<Key, (Refusal<J::Cause>, J::Grant)> {
        if let Err(refusal) = self.check(priority, bytes, now, None, None) {
            return Err((refusal, grant));
        }
        let key = self.insert(Node {
            seq: 0,
            place: Place::Free,
            previous: NONE,
            next: NONE,
            priority,
            bytes,
            submitted: now,
            deadline: None,
            payload: None,
            reply: None,
            grant: Some(grant),
        });
        self.let_in(key.index);
        Ok(key)
    }

    fn fill(&mut self, key: Key, offer: Offer<J>) -> Result<Key, Offer<J>> {
        let node = self.nodes.get(key.index as usize).filter(|node| node.seq == key.seq);
        let Some(Node { place: Place::Reserved, priority, bytes, .. }) = node else { return Err(offer) };
        if offer.priority != *priority || offer.bytes > *bytes {
            return Err(offer);
        }
        self.unlink(key.index);
        // It arrives now: those that came since the reservation are older.
        self.arrivals += 1;
        let seq = self.arrivals;
        let Offer { priority: _, bytes, submitted, deadline, expected: _, payload, reply } = offer;
        let node = &mut self.nodes[key.index as usize];
        node.seq = seq;
        node.bytes = bytes;
        node.submitted = submitted;
        node.deadline = deadline;
        node.payload = Some(payload);
        node.reply = Some(reply);
        self.enqueue(key.index);
        // The job may be smaller than its place.
        self.admit();
        Ok(Key { index: key.index, seq })
    }

    fn let_in(&mut self, index: u32) {
        // Nobody waits and there is room: the common case needs no detour.
        if self.waiting.iter().all(|list| list.len == 0) && self.fits(index) {
            self.enqueue(index);
        } else {
            self.link(Place::Waiting, index);
            self.admit();
        }
    }

    /// Counts the job, and refuses it for what no waiting can cure.
    fn check(
        &mut self,
        priority: Priority,
        bytes: usize,
        submitted: Instant,
        deadline: Option<Instant>,
        expected: Option<Duration>,
    ) -> Result<(), Refusal<J::Cause>> {
        if let Phase::Superseded = self.phase {
            return Err(Refusal::Superseded);
        }
        let workers = self.idle.member.len().max(1);
        let outcomes = &mut self.outcomes[priority.index()];
        outcomes.submitted += 1;
        if let Phase::Draining(cause) | Phase::Closed(cause) = &self.phase {
            outcomes.closed += 1;
            return Err(Refusal::Closed(cause.clone()));
        }
        if let Some(deadline) = deadline {
            let soonest = match expected {
                None => submitted,
                Some(expected) => {
                    let ahead: usize = self.queued[..=priority.index()].iter().map(|list| list.len).sum();
                    let turns = u32::try_from(ahead / workers + 1).unwrap_or(u32::MAX);
                    submitted.checked_add(expected.saturating_mul(turns)).unwrap_or(submitted)
                }
            };
            if deadline <= soonest {
                outcomes.expired += 1;
                return Err(Refusal::Expired);
            }
        }
        let limit = self.limits.largest_job(priority);
        if bytes > limit {
            outcomes.rejected += 1;
            return Err(Refusal::TooLarge { limit });
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        let lists = self.queued.iter().chain(&self.reserved).chain(&self.waiting);
        self.running == 0 && lists.map(|list| list.len).sum::<usize>() == 0
    }

    /// Takes all reservations back, those that wait and those that have their place.
    fn revoke(&mut self) -> Vec<Removed<J>> {
        let mut removed = Vec::new();
        for class in 0..Priority::COUNT {
            for place in [Place::Reserved, Place::Waiting] {
                let mut index = self.list(place, class).head;
                while index != NONE {
                    let node = &self.nodes[index as usize];
                    let next = node.next;
                    if node.payload.is_none() {
                        self.unlink(index);
                        self.outcomes[class].cancelled += 1;
                        removed.push(self.take_out(index, Stage::Admission));
                    }
                    index = next;
                }
            }
        }
        self.admit();
        removed
    }

    fn gather(&mut self, first: &Taken<J>, now: Instant) -> Vec<Taken<J>> {
        let mut taken = Vec::new();
        let Some(gather) = self.gather else { return taken };
        let class = self.nodes[first.key.index as usize].priority.index();
        while taken.len() + 1 < gather.most {
            let index = self.queued[class].head;
            let Some(node) = self.nodes.get(index as usize) else { break };
            let joins = node.payload.as_ref().is_some_and(|payload| J::joins(&first.payload, payload));
            // The others are for a turn of their own, which drops or answers them.
            let is_late = node.deadline.is_some_and(|deadline| deadline <= now);
            if !joins || is_late || node.reply.as_ref().is_none_or(Reply::is_abandoned) {
                break;
            }
            self.unlink(index);
            self.admit();
            self.dequeues += 1;
            let Next::Run(job) = self.start(index) else { unreachable!("a queued job starts") };
            taken.push(job);
        }
        taken
    }

    /// Until when the head of a class waits for company.
    fn hold(&self, class: usize, now: Instant) -> Option<Instant> {
        let gather = self.gather?;
        let list = &self.queued[class];
        if class == Priority::High.index() || list.len >= gather.most || !matches!(self.phase, Phase::Open) {
            return None;
        }
        let head = self.nodes.get(list.head as usize)?;
        let until = head.submitted.checked_add(gather.delay)?;
        let until = head.deadline.map_or(until, |deadline| until.min(deadline));
        (until > now).then_some(until)
    }

    fn turn(&mut self, worker: usize, finished: Option<(Key, Ending)>, now: Instant) -> Turn<J> {
        self.idle.remove(worker);
        let reply = finished.and_then(|(key, ending)| self.finish(key, ending));
        let mut turn = Turn { reply, expired: Vec::new(), abandoned: Vec::new(), next: Next::Idle };
        while let Some(class) = self.choose_queued(now) {
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
            if let Some(until) = (0..Priority::COUNT).filter_map(|class| self.hold(class, now)).min() {
                self.idle.add(worker);
                turn.next = Next::Hold(until);
                return turn;
            }
            match self.phase {
                Phase::Open => self.idle.add(worker),
                Phase::Draining(_) | Phase::Superseded | Phase::Closed(_) => {
                    self.stops += 1;
                    turn.next = Next::Stop;
                }
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
        let (_, reply, _) = self.vacate(key.index);
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
                Some(Removed { payload: None, reply: Some(reply), grant: None, stage: Stage::Running })
            }
            place @ (Place::Waiting | Place::Reserved | Place::Queued) => {
                *count(outcomes) += 1 + u64::from(crate::mutant!("counts-twice"));
                let stage = if place == Place::Queued { Stage::Queued } else { Stage::Admission };
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
        self.take_all()
    }

    /// Gives out everything that has not started.
    fn take_all(&mut self) -> Vec<Removed<J>> {
        let mut removed = Vec::new();
        for class in 0..Priority::COUNT {
            for (place, stage) in [
                (Place::Queued, Stage::Queued),
                (Place::Reserved, Stage::Admission),
                (Place::Waiting, Stage::Admission),
            ] {
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
    fn choose_queued(&self, now: Instant) -> Option<usize> {
        self.choose(self.dequeues, |class| {
            let index = self.queued[class].head;
            (index != NONE && self.hold(class, now).is_none()).then_some(index)
        })
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
        if every != 0 && turns % every == every - 1 && !crate::mutant!("never-the-oldest") {
            heads.min_by_key(|&(_, index)| self.nodes[index as usize].seq).map(|(class, _)| class)
        } else {
            heads.next().map(|(class, _)| class)
        }
    }

    fn fits(&self, index: u32) -> bool {
        if crate::mutant!("no-limits") {
            return true;
        }
        let lists = || self.queued.iter().chain(&self.reserved);
        let bytes: usize = lists().map(|list| list.bytes).sum();
        let jobs: usize = lists().map(|list| list.len).sum();
        let limit = self.limits.total();
        jobs < limit.jobs && self.nodes[index as usize].bytes <= limit.bytes - bytes && self.fits_class(index)
    }

    fn fits_class(&self, index: u32) -> bool {
        let node = &self.nodes[index as usize];
        let limit = self.limits.of(node.priority);
        let (queued, reserved) = (&self.queued[node.priority.index()], &self.reserved[node.priority.index()]);
        queued.len + reserved.len < limit.jobs && node.bytes <= limit.bytes - queued.bytes - reserved.bytes
    }

    fn enqueue(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        if node.payload.is_none() {
            self.woken.grants.extend(node.grant.take());
            self.link(Place::Reserved, index);
            return;
        }
        self.link(Place::Queued, index);
        if let Some(worker) = self.idle.pop() {
            self.woken.workers.push(worker);
        }
    }

    /// Wakes one thread per queued job, as far as any sleep.
    fn call_for_queued(&mut self) {
        let jobs: usize = self.queued.iter().map(|list| list.len).sum();
        for _ in 0..jobs {
            let Some(worker) = self.idle.pop() else { break };
            self.woken.workers.push(worker);
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            depth: self.queued.map(|list| list.len),
            reserved: self.reserved.iter().map(|list| list.len).sum(),
            bytes: self.queued.iter().chain(&self.reserved).map(|list| list.bytes).sum(),
            waiting: self.waiting.iter().map(|list| list.len).sum(),
            running: self.running,
            outcomes: self.outcomes,
            detached: self.detached,
        }
    }

    // ---- slab and lists ----

    fn insert(&mut self, mut node: Node<J>) -> Key {
        self.arrivals += 1;
        node.seq = self.arrivals;
        let seq = node.seq;
        let index = match self.free.pop() {
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
        };
        Key { index, seq }
    }

    fn vacate(&mut self, index: u32) -> (Option<J::Payload>, Option<J::Reply>, Option<J::Grant>) {
        let node = &mut self.nodes[index as usize];
        node.place = Place::Free;
        let parts = (node.payload.take(), node.reply.take(), node.grant.take());
        self.free.push(index);
        if self.free.len() == self.nodes.len() && self.nodes.len() > KEEP_NODES {
            self.nodes = Vec::new();
            self.free = Vec::new();
        }
        parts
    }

    fn take_out(&mut self, index: u32, stage: Stage) -> Removed<J> {
        let (payload, reply, grant) = self.vacate(index);
        Removed { payload, reply, grant, stage }
    }

    fn list(&mut self, place: Place, class: usize) -> &mut List {
        match place {
            Place::Queued => &mut self.queued[class],
            Place::Reserved => &mut self.reserved[class],
            Place::Waiting => &mut self.waiting[class],
            Place::Free | Place::Running => unreachable!("only jobs that have not started are in a list"),
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
