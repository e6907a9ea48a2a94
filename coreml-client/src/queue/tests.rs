use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::limits::Limit;

/// A job whose payload is its number.
struct Numbered;

impl Job for Numbered {
    type Payload = u32;
    type Reply = Caller;
    type Cause = &'static str;
    type Wake = Wakes;
    type Grant = Granted;

    fn joins(first: &u32, other: &u32) -> bool {
        first / 100 == other / 100
    }
}

/// Remembers that it was granted.
#[derive(Clone, Default)]
struct Granted(Rc<Cell<bool>>);

impl Grant for Granted {
    fn grant(self) {
        self.0.set(true);
    }
}

/// A caller that may be gone.
#[derive(Clone, Default)]
struct Caller(Rc<Cell<bool>>);

impl Reply for Caller {
    fn is_abandoned(&self) -> bool {
        self.0.get()
    }
}

/// Counts wake-ups.
#[derive(Clone, Default)]
struct Wakes(Arc<AtomicUsize>);

impl Wake for Wakes {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn limits(jobs: usize, bytes: usize, fairness: u32) -> Limits {
    Limits::new(Limit { jobs, bytes }, [None; Priority::COUNT], fairness)
}

fn queue(limits: Limits, workers: usize) -> (Queue<Numbered>, Vec<Wakes>) {
    let wakes = vec![Wakes::default(); workers].iter().map(|_| Wakes::default()).collect::<Vec<_>>();
    (Queue::new(limits, None, wakes.clone().into()), wakes)
}

fn offer(payload: u32, priority: Priority, bytes: usize) -> Offer<Numbered> {
    Offer {
        priority,
        bytes,
        submitted: Instant::now(),
        deadline: None,
        expected: None,
        payload,
        reply: Caller::default(),
    }
}

fn push(queue: &Queue<Numbered>, payload: u32, priority: Priority) -> Key {
    match queue.push(offer(payload, priority, 0), WhenFull::Wait) {
        Ok(pushed) => pushed.key,
        Err(refused) => panic!("refused: {:?}", refused.refusal),
    }
}

/// Takes and finishes everything, and says in which order it came.
fn serve_all(queue: &Queue<Numbered>) -> Vec<u32> {
    let mut order = Vec::new();
    let mut finished = None;
    loop {
        match queue.turn(0, finished.take(), Instant::now()).next {
            Next::Run(job) => {
                order.push(job.payload);
                finished = Some((job.key, Ending::Ok));
            }
            Next::Idle | Next::Hold(_) | Next::Stop => return order,
        }
    }
}

#[test]
fn order_is_by_class_and_then_by_arrival() {
    let (queue, _) = queue(limits(64, 0, 0), 1);
    for (number, priority) in [
        (1, Priority::Low),
        (2, Priority::Normal),
        (3, Priority::High),
        (4, Priority::Normal),
        (5, Priority::High),
    ] {
        push(&queue, number, priority);
    }
    assert_eq!(serve_all(&queue), [3, 5, 2, 4, 1]);
}

#[test]
fn a_low_job_with_k_older_ones_starts_within_8_times_k_plus_1_dequeues_of_a_high_flood() {
    for older in [0_usize, 1, 5] {
        let (queue, _) = queue(limits(64, 0, 8), 1);
        for number in 0..older {
            push(&queue, number as u32, Priority::Low);
        }
        push(&queue, 1_000, Priority::Low);
        let mut finished = None;
        let mut dequeues = 0;
        loop {
            // High jobs never run out.
            push(&queue, 2_000, Priority::High);
            let Next::Run(job) = queue.turn(0, finished.take(), Instant::now()).next else {
                panic!("there is always a job")
            };
            dequeues += 1;
            finished = Some((job.key, Ending::Ok));
            if job.payload == 1_000 {
                break;
            }
        }
        assert!(dequeues <= 8 * (older + 1), "{dequeues} dequeues with {older} older jobs");
        assert!(dequeues > 7, "High goes before Low otherwise");
    }
}

#[test]
fn strict_priorities_let_a_low_job_starve() {
    let (queue, _) = queue(limits(64, 0, 0), 1);
    push(&queue, 1_000, Priority::Low);
    let mut finished = None;
    for _ in 0..1_000 {
        push(&queue, 2_000, Priority::High);
        let Next::Run(job) = queue.turn(0, finished.take(), Instant::now()).next else {
            panic!("there is always a job")
        };
        assert_eq!(job.payload, 2_000);
        finished = Some((job.key, Ending::Ok));
    }
}

#[test]
fn a_full_queue_gives_the_payload_back_and_counts_a_rejection() {
    let (queue, _) = queue(limits(2, 10, 8), 1);
    assert!(queue.push(offer(1, Priority::Normal, 4), WhenFull::Refuse).is_ok());
    assert!(queue.push(offer(2, Priority::Normal, 4), WhenFull::Refuse).is_ok());
    let Err(refused) = queue.push(offer(3, Priority::High, 0), WhenFull::Refuse) else { panic!("count") };
    assert_eq!((refused.refusal, refused.payload), (Refusal::Full, 3));
    assert_eq!(serve_all(&queue), [1, 2]);
    let Err(refused) = queue.push(offer(4, Priority::High, 11), WhenFull::Wait) else { panic!("size") };
    assert_eq!((refused.refusal, refused.payload), (Refusal::TooLarge { limit: 10 }, 4));
    let snapshot = queue.snapshot();
    assert_eq!(snapshot.outcomes[Priority::High.index()].rejected, 2);
    assert_eq!((snapshot.bytes, snapshot.depth), (0, [0; 3]));
}

#[test]
fn bytes_limit_admission_and_a_big_job_is_not_slipped_past() {
    let (queue, _) = queue(limits(64, 10, 8), 1);
    let first = queue.push(offer(1, Priority::Normal, 6), WhenFull::Wait).ok().unwrap();
    queue.push(offer(2, Priority::Normal, 8), WhenFull::Wait).ok().unwrap();
    queue.push(offer(3, Priority::Normal, 1), WhenFull::Wait).ok().unwrap();
    let snapshot = queue.snapshot();
    assert_eq!((snapshot.bytes, snapshot.depth, snapshot.waiting), (6, [0, 1, 0], 2));
    let Err(refused) = queue.push(offer(4, Priority::Normal, 1), WhenFull::Refuse) else { panic!("no turn") };
    assert_eq!(refused.refusal, Refusal::Full);
    let removed = queue.cancel(first.key).unwrap();
    assert_eq!((removed.payload, removed.stage), (Some(1), Stage::Queued));
    let snapshot = queue.snapshot();
    assert_eq!((snapshot.bytes, snapshot.depth, snapshot.waiting), (9, [0, 2, 0], 0));
    assert_eq!(serve_all(&queue), [2, 3]);
}

#[test]
fn a_class_at_its_own_limit_does_not_lock_out_the_others() {
    let class = Limit { jobs: 2, bytes: 100 };
    let (queue, _) = queue(Limits::new(Limit { jobs: 4, bytes: 100 }, [Some(class), None, None], 8), 1);
    for number in 0..5 {
        push(&queue, number, Priority::High);
    }
    assert!(queue.push(offer(10, Priority::Low, 0), WhenFull::Refuse).is_ok());
    assert!(queue.push(offer(11, Priority::Normal, 0), WhenFull::Refuse).is_ok());
    assert!(queue.push(offer(12, Priority::Normal, 0), WhenFull::Refuse).is_err());
    let snapshot = queue.snapshot();
    assert_eq!((snapshot.depth, snapshot.waiting), ([2, 1, 1], 3));
}

#[test]
fn one_push_wakes_exactly_one_sleeper_and_the_latest() {
    let (queue, wakes) = queue(limits(64, 0, 8), 3);
    for worker in [2, 0, 1] {
        assert!(matches!(queue.turn(worker, None, Instant::now()).next, Next::Idle));
    }
    let counts = || wakes.iter().map(|wake| wake.0.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let pushed = queue.push(offer(1, Priority::Normal, 0), WhenFull::Wait).ok().unwrap();
    assert!(!pushed.all_busy);
    assert_eq!(counts(), [0, 1, 0]);
    push(&queue, 2, Priority::Normal);
    assert_eq!(counts(), [1, 1, 0]);
    push(&queue, 3, Priority::Normal);
    let pushed = queue.push(offer(4, Priority::Normal, 0), WhenFull::Wait).ok().unwrap();
    assert!(pushed.all_busy);
    assert_eq!(counts(), [1, 1, 1]);
}

#[test]
fn a_thread_that_leaves_passes_its_wake_up_on() {
    let (queue, wakes) = queue(limits(64, 0, 8), 2);
    for worker in [0, 1] {
        assert!(matches!(queue.turn(worker, None, Instant::now()).next, Next::Idle));
    }
    push(&queue, 1, Priority::Normal);
    assert_eq!(wakes[1].0.load(Ordering::Relaxed), 1);
    queue.leave(1);
    assert_eq!(wakes[0].0.load(Ordering::Relaxed), 1);
}

#[test]
fn an_expired_job_never_starts() {
    let (queue, _) = queue(limits(64, 0, 8), 1);
    let now = Instant::now();
    let mut late = offer(1, Priority::High, 0);
    late.submitted = now;
    late.deadline = Some(now + Duration::from_millis(1));
    queue.push(late, WhenFull::Wait).ok().unwrap();
    push(&queue, 2, Priority::Low);
    let turn = queue.turn(0, None, now + Duration::from_millis(1));
    assert_eq!(turn.expired.iter().map(|removed| removed.payload).collect::<Vec<_>>(), [Some(1)]);
    assert!(matches!(turn.next, Next::Run(Taken { payload: 2, .. })));

    let mut past = offer(3, Priority::High, 0);
    past.deadline = Some(past.submitted);
    let Err(refused) = queue.push(past, WhenFull::Wait) else { panic!("past") };
    assert_eq!(refused.refusal, Refusal::Expired);
    assert_eq!(queue.snapshot().outcomes[Priority::High.index()].expired, 2);
}

#[test]
fn a_waiter_behind_an_expired_job_is_served_by_the_thread_that_removed_it() {
    let (queue, _) = queue(limits(1, 0, 8), 1);
    let now = Instant::now();
    let mut late = offer(1, Priority::Normal, 0);
    late.submitted = now;
    late.deadline = Some(now + Duration::from_millis(1));
    queue.push(late, WhenFull::Wait).ok().unwrap();
    push(&queue, 2, Priority::Normal);
    let turn = queue.turn(0, None, now + Duration::from_secs(1));
    assert!(matches!(turn.next, Next::Run(Taken { payload: 2, .. })));
}

#[test]
fn a_running_job_that_is_given_up_is_counted_once_and_finishes_detached() {
    let (queue, _) = queue(limits(64, 0, 8), 1);
    let key = push(&queue, 1, Priority::Normal);
    let Next::Run(job) = queue.turn(0, None, Instant::now()).next else { panic!("queued") };
    let removed = queue.cancel(key).unwrap();
    assert_eq!((removed.payload, removed.stage, removed.reply.is_some()), (None, Stage::Running, true));
    assert!(queue.expire(key).is_none());
    assert!(queue.finish(job.key, Ending::Ok).is_none());
    let snapshot = queue.snapshot();
    assert_eq!((snapshot.running, snapshot.detached), (0, 1));
    let outcomes = snapshot.outcomes[Priority::Normal.index()];
    assert_eq!((outcomes.submitted, outcomes.cancelled, outcomes.ok), (1, 1, 0));
}

#[test]
fn a_key_never_means_a_later_job_even_after_the_slab_was_given_back() {
    let (queue, _) = queue(limits(64, 0, 8), 1);
    let old = push(&queue, 1, Priority::Normal);
    assert_eq!(serve_all(&queue), [1]);
    let new = push(&queue, 2, Priority::Normal);
    assert_eq!(old.index, new.index);
    assert!(queue.cancel(old).is_none());
    let keys =
        (0..2 * KEEP_NODES as u32).map(|number| push(&queue, number, Priority::Low)).collect::<Vec<_>>();
    assert!(queue.lock().nodes.len() > KEEP_NODES);
    serve_all(&queue);
    assert!(queue.lock().nodes.is_empty());
    assert!(keys.iter().all(|&key| queue.cancel(key).is_none()));
}

#[test]
fn closing_gives_out_everything_and_lets_nothing_in() {
    let (queue, wakes) = queue(limits(2, 0, 8), 2);
    for number in 0..5 {
        push(&queue, number, Priority::Normal);
    }
    assert!(matches!(queue.turn(0, None, Instant::now()).next, Next::Run(_)));
    let removed = queue.close("first");
    assert_eq!(removed.len(), 4);
    assert!(removed.iter().all(|removed| removed.payload.is_some() && removed.reply.is_some()));
    assert!(wakes.iter().all(|wake| wake.0.load(Ordering::Relaxed) > 0));
    assert!(queue.close("second").is_empty());
    let Err(refused) = queue.push(offer(9, Priority::High, 0), WhenFull::Wait) else { panic!("closed") };
    assert_eq!(refused.refusal, Refusal::Closed("first"));
    assert!(matches!(queue.turn(1, None, Instant::now()).next, Next::Stop));
    assert_eq!(queue.snapshot().outcomes[Priority::Normal.index()].closed, 4);
}

#[test]
fn draining_serves_what_is_in_and_then_stops() {
    let (queue, _) = queue(limits(1, 0, 8), 1);
    for number in 0..3 {
        push(&queue, number, Priority::Normal);
    }
    queue.drain("drained");
    assert!(queue.push(offer(9, Priority::High, 0), WhenFull::Wait).is_err());
    assert_eq!(serve_all(&queue), [0, 1, 2]);
    assert!(matches!(queue.turn(0, None, Instant::now()).next, Next::Stop));
}

#[test]
fn a_reservation_holds_its_place_until_it_is_filled_or_given_back() {
    let (queue, _) = queue(limits(2, 10, 8), 1);
    let reserve = |bytes| {
        let grant = Granted::default();
        (queue.reserve(Priority::Normal, bytes, Instant::now(), grant.clone()).unwrap(), grant)
    };
    let (first, granted) = reserve(6);
    let (second, later) = reserve(6);
    assert!(granted.0.get() && !later.0.get());
    assert_eq!((queue.snapshot().reserved, queue.snapshot().waiting, queue.snapshot().bytes), (1, 1, 6));
    assert!(queue.fill(second, offer(1, Priority::Normal, 6)).is_err(), "it has no place yet");
    assert!(queue.fill(first, offer(1, Priority::Normal, 7)).is_err(), "it does not fit its place");
    // A smaller job than was reserved makes room at once.
    assert!(queue.fill(first, offer(2, Priority::Normal, 4)).is_ok());
    assert!(later.0.get());
    assert!(queue.fill(first, offer(3, Priority::Normal, 1)).is_err(), "a place is filled once");
    drop(queue.cancel(second).unwrap());
    assert_eq!(serve_all(&queue), [2]);
    let outcomes = queue.snapshot().outcomes[Priority::Normal.index()];
    assert_eq!((outcomes.submitted, outcomes.ok, outcomes.cancelled), (2, 1, 1));
}

#[test]
fn a_superseded_queue_serves_what_it_has_and_sends_the_others_on_uncounted() {
    let (queue, _) = queue(limits(64, 0, 8), 1);
    push(&queue, 1, Priority::Normal);
    queue.supersede();
    let Err(refused) = queue.push(offer(2, Priority::Normal, 0), WhenFull::Wait) else {
        panic!("superseded")
    };
    assert_eq!((refused.refusal, refused.payload), (Refusal::Superseded, 2));
    assert_eq!(serve_all(&queue), [1]);
    assert_eq!(queue.snapshot().outcomes[Priority::Normal.index()].submitted, 1);
    assert!(!queue.reopen(), "a thread was told to stop");
}

#[test]
fn only_an_idle_queue_is_closed_for_room_and_it_opens_again_before_a_thread_has_seen_it() {
    let (queue, _) = queue(limits(64, 0, 8), 1);
    push(&queue, 1, Priority::Normal);
    assert!(!queue.close_if_idle("evicted"));
    let Next::Run(job) = queue.turn(0, None, Instant::now()).next else { panic!("queued") };
    assert!(!queue.close_if_idle("evicted"), "it runs");
    queue.finish(job.key, Ending::Ok);
    assert!(queue.close_if_idle("evicted"));
    assert!(queue.push(offer(2, Priority::Normal, 0), WhenFull::Wait).is_err());
    assert!(queue.reopen());
    assert!(queue.push(offer(3, Priority::Normal, 0), WhenFull::Wait).is_ok());
    assert_eq!(serve_all(&queue), [3]);
}

#[test]
fn jobs_are_gathered_in_order_until_one_does_not_join_and_high_never_waits() {
    let delay = Duration::from_millis(10);
    let gather = Gather { most: 3, delay };
    let queue = Queue::<Numbered>::new(limits(64, 0, 8), Some(gather), [Wakes::default()].into());
    let now = Instant::now();
    let add = |number, priority| {
        let job = Offer { submitted: now, ..offer(number, priority, 0) };
        assert!(queue.push(job, WhenFull::Wait).is_ok());
    };
    let mut finished = None;
    let mut batch = |at| {
        let turn = queue.turn(0, finished.take(), at);
        let Next::Run(first) = turn.next else { return None };
        let rest = queue.gather(&first, at);
        for job in &rest {
            queue.finish(job.key, Ending::Ok);
        }
        let numbers = std::iter::once(first.payload).chain(rest.iter().map(|job| job.payload));
        finished = Some((first.key, Ending::Ok));
        Some(numbers.collect::<Vec<_>>())
    };
    add(101, Priority::Normal);
    add(102, Priority::Normal);
    assert_eq!(batch(now), None, "two of three wait for company");
    add(900, Priority::High);
    assert_eq!(batch(now), Some(vec![900]));
    assert_eq!(batch(now + delay), Some(vec![101, 102]), "but not for ever");
    for number in [103, 104, 105, 106, 201, 107] {
        add(number, Priority::Normal);
    }
    assert_eq!(batch(now), Some(vec![103, 104, 105]));
    assert_eq!(batch(now), Some(vec![106]), "201 has another shape, and nothing slips past it");
    queue.drain("drained");
    assert_eq!(batch(now), Some(vec![201]), "nobody comes any more: no reason to wait");
    assert_eq!(batch(now), Some(vec![107]));
}

#[test]
fn a_deadline_that_those_before_it_will_use_up_is_refused_if_asked() {
    let (queue, _) = queue(limits(64, 0, 8), 2);
    let now = Instant::now();
    let second = Duration::from_secs(1);
    let hopeful = |expected| {
        let mut job = Offer { submitted: now, expected, ..offer(9, Priority::Normal, 0) };
        job.deadline = Some(now + 2 * second);
        queue
            .push(job, WhenFull::Refuse)
            .map(|pushed| drop(queue.cancel(pushed.key)))
            .map_err(|it| it.refusal)
    };
    assert_eq!(hopeful(Some(second)), Ok(()));
    for number in 0..2 {
        push(&queue, number, Priority::Low);
    }
    assert_eq!(hopeful(Some(second)), Ok(()), "those of a lower class are not before it");
    for number in 2..4 {
        push(&queue, number, Priority::Normal);
    }
    assert_eq!(hopeful(Some(second)), Err(Refusal::Expired), "two threads, two before it, a second each");
    assert_eq!(hopeful(None), Ok(()), "not asked");
}

// ---- against a naive reference ----

#[derive(Clone, Debug)]
enum Op {
    Push {
        priority: Priority,
        bytes: usize,
        deadline: Option<u64>,
        refuse: bool,
    },
    Reserve {
        priority: Priority,
        bytes: usize,
    },
    /// With so many bytes less than reserved.
    Fill {
        which: usize,
        less: usize,
    },
    Turn {
        worker: usize,
        ending: Ending,
    },
    Cancel(usize),
    Expire(usize),
    Abandon(usize),
    Tick(u64),
    Drain,
    Close,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let priority = prop_oneof![Just(Priority::High), Just(Priority::Normal), Just(Priority::Low)];
    let reserved = prop_oneof![Just(Priority::High), Just(Priority::Low)];
    let op = prop_oneof![
        3 => (reserved, 0..14_usize).prop_map(|(priority, bytes)| Op::Reserve { priority, bytes }),
        4 => (0..100_usize, 0..3_usize).prop_map(|(which, less)| Op::Fill { which, less }),
        12 => (priority, 0..14_usize, proptest::option::weighted(0.2, 0..40_u64), any::<bool>())
            .prop_map(|(priority, bytes, deadline, refuse)| Op::Push { priority, bytes, deadline, refuse }),
        10 => (0..3_usize, any::<bool>())
            .prop_map(|(worker, ok)| Op::Turn { worker, ending: if ok { Ending::Ok } else { Ending::Error } }),
        3 => (0..100_usize).prop_map(Op::Cancel),
        2 => (0..100_usize).prop_map(Op::Expire),
        1 => (0..100_usize).prop_map(Op::Abandon),
        2 => (0..10_u64).prop_map(Op::Tick),
    ];
    let end = prop_oneof![Just(Op::Drain), Just(Op::Close), Just(Op::Tick(0))];
    (proptest::collection::vec(op.clone(), 0..150), end, proptest::collection::vec(op, 0..30)).prop_map(
        |(mut ops, end, rest)| {
            ops.push(end);
            ops.extend(rest);
            ops
        },
    )
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Waiting,
    Reserved,
    Queued,
    Running { answered: bool },
    Over,
}

/// All jobs in one list in the order of arrival; every question is answered by reading all of it.
struct Reference {
    limits: Limits,
    jobs: Vec<(Priority, usize, Option<u64>, bool, At)>,
    /// Jobs that are reservations.
    reservations: Vec<usize>,
    /// Jobs in the order in which they were queued: a filled place is older than those who waited behind it.
    queued: Vec<usize>,
    dequeues: u64,
    admissions: u64,
    drained: bool,
    closed: bool,
    counts: HashMap<(Priority, &'static str), u64>,
}

impl Reference {
    fn count(&mut self, priority: Priority, what: &'static str) {
        *self.counts.entry((priority, what)).or_default() += 1;
    }

    fn load(&self, priority: Option<Priority>) -> (usize, usize) {
        let queued = self.jobs.iter().filter(|job| {
            matches!(job.4, At::Queued | At::Reserved) && priority.is_none_or(|priority| job.0 == priority)
        });
        queued.fold((0, 0), |(jobs, bytes), job| (jobs + 1, bytes + job.1))
    }

    fn fits_class(&self, job: usize) -> bool {
        let (priority, bytes, ..) = self.jobs[job];
        let (jobs, used) = self.load(Some(priority));
        jobs < self.limits.of(priority).jobs && used + bytes <= self.limits.of(priority).bytes
    }

    fn fits(&self, job: usize) -> bool {
        let (jobs, used) = self.load(None);
        let limit = self.limits.total();
        jobs < limit.jobs && used + self.jobs[job].1 <= limit.bytes && self.fits_class(job)
    }

    /// The first of its class, by the fairness rule.
    fn choose(&self, at: At, turns: u64, eligible: impl Fn(&Self, usize) -> bool) -> Option<usize> {
        let heads = Priority::ALL.into_iter().filter_map(|priority| {
            let is_there = |job: &usize| self.jobs[*job].4 == at && self.jobs[*job].0 == priority;
            let head = match at {
                At::Queued => self.queued.iter().copied().find(is_there)?,
                _ => (0..self.jobs.len()).find(is_there)?,
            };
            eligible(self, head).then_some(head)
        });
        let every = u64::from(self.limits.fairness);
        if every > 0 && (turns + 1).is_multiple_of(every) { heads.min() } else { heads.into_iter().next() }
    }

    fn admit(&mut self) {
        while let Some(job) = self.choose(At::Waiting, self.admissions, Self::fits_class) {
            if !self.fits(job) {
                return;
            }
            self.admissions += 1;
            self.jobs[job].4 = self.place(job);
        }
    }

    fn place(&mut self, job: usize) -> At {
        if self.reservations.contains(&job) {
            return At::Reserved;
        }
        self.queued.push(job);
        At::Queued
    }

    /// The number of the job that takes the place, if it is there.
    fn fill(&mut self, which: usize, less: usize) -> bool {
        if self.jobs[which].4 != At::Reserved {
            return false;
        }
        self.jobs[which].4 = At::Over;
        let (priority, bytes, ..) = self.jobs[which];
        self.queued.push(self.jobs.len());
        self.jobs.push((priority, bytes.saturating_sub(less), None, false, At::Queued));
        self.admit();
        true
    }

    fn drain(&mut self) {
        self.drained = true;
        for job in self.reservations.clone() {
            if matches!(self.jobs[job].4, At::Waiting | At::Reserved) {
                self.jobs[job].4 = At::Over;
                self.count(self.jobs[job].0, "cancelled");
            }
        }
        self.admit();
    }

    fn push(
        &mut self,
        priority: Priority,
        bytes: usize,
        deadline: Option<u64>,
        now: u64,
        refuse: bool,
        reservation: bool,
    ) -> bool {
        self.count(priority, "submitted");
        if reservation {
            self.reservations.push(self.jobs.len());
        }
        let over = |reference: &mut Self, what| {
            reference.count(priority, what);
            reference.jobs.push((priority, bytes, deadline, false, At::Over));
            false
        };
        if self.drained || self.closed {
            return over(self, "closed");
        }
        if deadline.is_some_and(|deadline| deadline <= now) {
            return over(self, "expired");
        }
        if bytes > self.limits.of(priority).bytes {
            return over(self, "rejected");
        }
        let anybody_waits = self.jobs.iter().any(|job| job.4 == At::Waiting);
        self.jobs.push((priority, bytes, deadline, false, At::Waiting));
        let job = self.jobs.len() - 1;
        if !anybody_waits && self.fits(job) {
            self.jobs[job].4 = self.place(job);
        } else {
            self.admit();
        }
        if refuse && self.jobs[job].4 == At::Waiting {
            self.jobs[job].4 = At::Over;
            self.count(priority, "rejected");
            return false;
        }
        true
    }

    fn take(&mut self, now: u64) -> Option<usize> {
        while let Some(job) = self.choose(At::Queued, self.dequeues, |_, _| true) {
            let (priority, _, deadline, abandoned, _) = self.jobs[job];
            self.jobs[job].4 = At::Over;
            self.admit();
            if deadline.is_some_and(|deadline| deadline <= now) {
                self.count(priority, "expired");
            } else if abandoned {
                self.count(priority, "cancelled");
            } else {
                self.jobs[job].4 = At::Running { answered: false };
                self.dequeues += 1;
                return Some(job);
            }
        }
        None
    }

    fn finish(&mut self, job: usize, ending: Ending) -> bool {
        let answered = self.jobs[job].4 == At::Running { answered: true };
        assert_ne!(self.jobs[job].4, At::Over);
        self.jobs[job].4 = At::Over;
        if !answered {
            self.count(self.jobs[job].0, if ending == Ending::Ok { "ok" } else { "error" });
        }
        !answered
    }

    fn remove(&mut self, job: usize, what: &'static str) -> bool {
        match self.jobs[job].4 {
            At::Over | At::Running { answered: true } => return false,
            At::Running { answered: false } => self.jobs[job].4 = At::Running { answered: true },
            At::Waiting | At::Reserved | At::Queued => {
                self.jobs[job].4 = At::Over;
                self.admit();
            }
        }
        self.count(self.jobs[job].0, what);
        true
    }

    fn close(&mut self) -> usize {
        if std::mem::replace(&mut self.closed, true) {
            return 0;
        }
        let mut closed = 0;
        for job in 0..self.jobs.len() {
            if matches!(self.jobs[job].4, At::Waiting | At::Reserved | At::Queued) {
                self.jobs[job].4 = At::Over;
                self.count(self.jobs[job].0, "closed");
                closed += 1;
            }
        }
        closed
    }
}

fn check_against_reference(limits: Limits, ops: Vec<Op>) {
    const WORKERS: usize = 3;
    let (queue, wakes) = queue(limits, WORKERS);
    let mut reference = Reference {
        limits,
        jobs: Vec::new(),
        reservations: Vec::new(),
        queued: Vec::new(),
        dequeues: 0,
        admissions: 0,
        drained: false,
        closed: false,
        counts: HashMap::new(),
    };
    let epoch = Instant::now();
    let at = |tick| epoch + Duration::from_millis(tick);
    let mut now = 0_u64;
    let mut keys: Vec<Option<(Key, Caller)>> = Vec::new();
    let mut grants: Vec<(usize, Granted)> = Vec::new();
    let mut busy = [const { None::<(Key, u32)> }; WORKERS];
    let mut asleep = [None::<usize>; WORKERS];
    for op in ops {
        match op {
            Op::Push { priority, bytes, deadline, refuse } => {
                let number = keys.len() as u32;
                let reply = Caller::default();
                let offer = Offer {
                    priority,
                    bytes,
                    submitted: at(now),
                    deadline: deadline.map(at),
                    expected: None,
                    payload: number,
                    reply: reply.clone(),
                };
                let when_full = if refuse { WhenFull::Refuse } else { WhenFull::Wait };
                let result = queue.push(offer, when_full);
                assert_eq!(result.is_ok(), reference.push(priority, bytes, deadline, now, refuse, false));
                if let Err(refused) = &result {
                    assert_eq!(refused.payload, number);
                }
                keys.push(result.ok().map(|pushed| (pushed.key, reply)));
            }
            Op::Reserve { priority, bytes } => {
                let grant = Granted::default();
                grants.push((keys.len(), grant.clone()));
                let result = queue.reserve(priority, bytes, at(now), grant);
                assert_eq!(result.is_ok(), reference.push(priority, bytes, None, now, false, true));
                keys.push(result.ok().map(|key| (key, Caller::default())));
            }
            Op::Fill { which, less } => {
                let Some(which) = (!grants.is_empty()).then(|| grants[which % grants.len()].0) else {
                    continue;
                };
                let Some((key, _)) = keys[which] else { continue };
                let number = keys.len() as u32;
                let (priority, bytes, ..) = reference.jobs[which];
                let filling =
                    Offer { submitted: at(now), ..offer(number, priority, bytes.saturating_sub(less)) };
                let reply = filling.reply.clone();
                let result = queue.fill(key, filling);
                assert_eq!(result.is_ok(), reference.fill(which, less));
                match result {
                    Ok(pushed) => keys.push(Some((pushed.key, reply))),
                    Err(back) => assert_eq!(back.payload, number),
                }
            }
            Op::Turn { worker, ending } => {
                let finished = busy[worker].take();
                let answers = finished.map(|(_, number)| reference.finish(number as usize, ending));
                let expected = reference.take(now);
                let turn = queue.turn(worker, finished.map(|(key, _)| (key, ending)), at(now));
                assert_eq!(turn.reply.is_some(), answers.unwrap_or(false));
                asleep[worker] = None;
                match turn.next {
                    Next::Run(job) => {
                        assert_eq!(Some(job.payload as usize), expected);
                        busy[worker] = Some((job.key, job.payload));
                    }
                    Next::Idle => {
                        assert!(expected.is_none() && !reference.drained && !reference.closed);
                        asleep[worker] = Some(wakes[worker].0.load(Ordering::Relaxed));
                    }
                    Next::Hold(_) => panic!("no batches here"),
                    Next::Stop => assert!(expected.is_none() && (reference.drained || reference.closed)),
                }
            }
            Op::Cancel(which) | Op::Expire(which) | Op::Abandon(which) => {
                let Some(number) = (!keys.is_empty()).then(|| which % keys.len()) else { continue };
                let Some((key, caller)) = &keys[number] else { continue };
                match op {
                    Op::Abandon(_) => {
                        caller.0.set(true);
                        reference.jobs[number].3 = true;
                    }
                    Op::Cancel(_) => {
                        assert_eq!(queue.cancel(*key).is_some(), reference.remove(number, "cancelled"));
                    }
                    _ => assert_eq!(queue.expire(*key).is_some(), reference.remove(number, "expired")),
                }
            }
            Op::Tick(ticks) => now += ticks,
            Op::Drain => {
                queue.drain("drained");
                reference.drain();
            }
            Op::Close => assert_eq!(queue.close("closed").len(), reference.close()),
        }

        // After every step the picture is the same, and the conservation law holds.
        let snapshot = queue.snapshot();
        let is = |at: At| reference.jobs.iter().filter(|job| job.4 == at).count();
        let queued_of = |priority| {
            let jobs = reference.jobs.iter().filter(|job| job.4 == At::Queued && job.0 == priority);
            jobs.count()
        };
        assert_eq!(snapshot.depth, Priority::ALL.map(queued_of));
        assert_eq!(snapshot.reserved, is(At::Reserved));
        assert_eq!(snapshot.bytes, reference.load(None).1);
        assert_eq!(snapshot.waiting, is(At::Waiting));
        assert_eq!(
            snapshot.running,
            is(At::Running { answered: false }) + is(At::Running { answered: true })
        );
        for priority in Priority::ALL {
            let outcomes = snapshot.outcomes[priority.index()];
            let Outcomes { submitted, ok, error, cancelled, expired, rejected, closed } = outcomes;
            for (what, count) in [
                ("submitted", submitted),
                ("ok", ok),
                ("error", error),
                ("cancelled", cancelled),
                ("expired", expired),
                ("rejected", rejected),
                ("closed", closed),
            ] {
                let expected = reference.counts.get(&(priority, what)).copied().unwrap_or(0);
                assert_eq!(count, expected, "{priority} {what}");
            }
        }
        let in_flight: u64 = snapshot.outcomes.iter().map(Outcomes::in_flight).sum();
        let answered_running = is(At::Running { answered: true });
        let queued: usize = snapshot.depth.iter().sum();
        let open = snapshot.waiting + snapshot.reserved + queued + snapshot.running;
        assert_eq!(in_flight as usize, open - answered_running);
        for (number, grant) in &grants {
            let must = reference.jobs[*number].4 == At::Reserved;
            assert!(!must || grant.0.get(), "who has a place was told so");
        }

        // Nobody sleeps through a job: as many sleepers were woken as there are jobs for them.
        let sleepers = asleep.iter().flatten().count();
        let woken = asleep
            .iter()
            .enumerate()
            .filter(|(worker, before)| before.is_some_and(|n| wakes[*worker].0.load(Ordering::Relaxed) > n))
            .count();
        assert!(woken >= sleepers.min(queued), "{sleepers} asleep, {woken} woken, {queued} queued");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_queue_equals_a_naive_reference(
        ops in ops(),
        jobs in 1..6_usize,
        class_jobs in 1..6_usize,
        fairness in 0..5_u32,
    ) {
        let class = Limit { jobs: class_jobs, bytes: 9 };
        check_against_reference(
            Limits::new(Limit { jobs, bytes: 12 }, [Some(class), None, None], fairness),
            ops,
        );
    }
}

// ---- with real threads ----

struct Threaded;

impl Job for Threaded {
    type Payload = Arc<AtomicUsize>;
    type Reply = Gone;
    type Cause = ();
    type Wake = crossbeam_channel::Sender<()>;
    type Grant = Never;

    fn joins(_: &Self::Payload, _: &Self::Payload) -> bool {
        false
    }
}

enum Never {}

impl Grant for Never {
    fn grant(self) {
        match self {}
    }
}

/// A caller that may be gone, across threads.
#[derive(Clone, Default)]
struct Gone(Arc<AtomicBool>);

impl Reply for Gone {
    fn is_abandoned(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn every_job_of_a_random_mix_ends_exactly_once_when_threads_race() {
    const PRODUCERS: usize = 4;
    const JOBS: usize = 5_000;
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..2).map(|_| crossbeam_channel::bounded(1)).unzip();
    let queue = Queue::<Threaded>::new(limits(8, 1_000, 8), None, senders.into());
    let ends = (0..PRODUCERS * JOBS).map(|_| Arc::new(AtomicUsize::new(0))).collect::<Vec<_>>();
    thread::scope(|scope| {
        for (worker, receiver) in receivers.iter().enumerate() {
            let queue = &queue;
            scope.spawn(move || {
                let mut finished = None;
                loop {
                    match queue.turn(worker, finished.take(), Instant::now()).next {
                        Next::Run(job) => {
                            job.payload.fetch_add(1, Ordering::Relaxed);
                            finished = Some((job.key, Ending::Ok));
                        }
                        Next::Idle | Next::Hold(_) => receiver.recv().unwrap(),
                        Next::Stop => return,
                    }
                }
            });
        }
        let producers = ends.chunks(JOBS).enumerate().map(|(producer, ends)| {
            let queue = &queue;
            scope.spawn(move || {
                for (number, end) in ends.iter().enumerate() {
                    let offer = Offer {
                        priority: Priority::ALL[number % 3],
                        bytes: number % 300,
                        submitted: Instant::now(),
                        deadline: None,
                        expected: None,
                        payload: Arc::clone(end),
                        reply: Gone::default(),
                    };
                    let when_full = if number % 2 == 0 { WhenFull::Wait } else { WhenFull::Refuse };
                    match queue.push(offer, when_full) {
                        Err(refused) => {
                            refused.payload.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(pushed) if (number + producer) % 3 == 0 => {
                            if let Some(removed) = queue.cancel(pushed.key)
                                && let Some(payload) = removed.payload
                            {
                                payload.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        Ok(_) => {}
                    }
                }
            })
        });
        let producers = producers.collect::<Vec<_>>();
        for producer in producers {
            producer.join().unwrap();
        }
        queue.drain(());
    });
    assert!(ends.iter().all(|end| end.load(Ordering::Relaxed) == 1));
    let snapshot = queue.snapshot();
    let outcomes: Outcomes = snapshot.outcomes.into_iter().sum();
    assert_eq!(outcomes.submitted, (PRODUCERS * JOBS) as u64);
    assert_eq!(outcomes.submitted, outcomes.settled());
    assert!(outcomes.ok > 0 && outcomes.rejected > 0 && outcomes.cancelled > 0);
    assert_eq!((snapshot.bytes, snapshot.waiting, snapshot.running), (0, 0, 0));
}
