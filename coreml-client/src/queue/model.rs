//! The queue under loom: every interleaving of a few threads. A thread that sleeps through its job is a deadlock, which
//! loom reports.
//!
//! ```text
//! cargo xtask loom
//! ```

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Notify};
use loom::thread;

use super::*;
use crate::limits::Limit;

struct Modelled;

impl Job for Modelled {
    type Payload = Ends;
    type Reply = Here;
    type Cause = ();
    type Wake = Signal;
    type Grant = Granted;

    fn joins(_: &Ends, _: &Ends) -> bool {
        false
    }
}

/// Counts how often a job ended.
type Ends = Arc<AtomicUsize>;

/// A caller that stays.
struct Here;

impl Reply for Here {
    fn is_abandoned(&self) -> bool {
        false
    }
}

#[derive(Clone)]
struct Signal(Arc<Notify>);

impl Wake for Signal {
    fn wake(&self) {
        self.0.notify();
    }
}

/// A wake-up may come for nothing, a grant may not.
#[derive(Clone)]
struct Granted(Arc<(AtomicUsize, Notify)>);

impl Granted {
    fn wait(&self) {
        while self.0.0.load(Ordering::Acquire) == 0 {
            self.0.1.wait();
        }
    }
}

impl Grant for Granted {
    fn grant(self) {
        self.0.0.fetch_add(1, Ordering::Release);
        self.0.1.notify();
    }
}

fn end(ends: &Ends) {
    ends.fetch_add(1, Ordering::Relaxed);
}

fn queue(jobs: usize, workers: usize) -> (Arc<Queue<Modelled>>, Vec<Signal>) {
    let limits = Limits::new(Limit { jobs, bytes: 100 }, [None; Priority::COUNT], 8);
    let signals: Vec<_> = (0..workers).map(|_| Signal(Arc::new(Notify::new()))).collect();
    (Arc::new(Queue::new(limits, None, signals.clone().into())), signals)
}

fn offer(now: Instant, ends: &Ends) -> Offer<Modelled> {
    Offer {
        priority: Priority::Normal,
        bytes: 1,
        submitted: now,
        deadline: None,
        expected: None,
        payload: ends.clone(),
        reply: Here,
    }
}

/// Hands a job in; a refused one has ended.
fn push(queue: &Queue<Modelled>, now: Instant, ends: &Ends) -> Option<Key> {
    match queue.push(offer(now, ends), WhenFull::Wait) {
        Ok(pushed) => Some(pushed.key),
        Err(refused) => {
            end(&refused.payload);
            None
        }
    }
}

fn cancel(queue: &Queue<Modelled>, key: Option<Key>) {
    if let Some(payload) = key.and_then(|key| queue.cancel(key)).and_then(|removed| removed.payload) {
        end(&payload);
    }
}

/// Serves until told to stop, or until it has done `most` jobs: then it dies with the last one in hand.
fn serve(queue: &Queue<Modelled>, worker: usize, signal: &Signal, now: Instant, most: usize) {
    let mut finished = None;
    let mut done = 0;
    loop {
        match queue.turn(worker, finished.take(), now).next {
            Next::Run(job) => {
                end(&job.payload);
                done += 1;
                if done == most {
                    drop(queue.finish(job.key, Ending::Error));
                    queue.leave(worker);
                    return;
                }
                finished = Some((job.key, Ending::Ok));
            }
            Next::Idle | Next::Hold(_) => signal.0.wait(),
            Next::Stop => {
                queue.leave(worker);
                return;
            }
        }
    }
}

/// A thread that serves as worker 0 until told to stop.
fn worker(queue: &Arc<Queue<Modelled>>, signals: &[Signal], now: Instant) -> thread::JoinHandle<()> {
    let (queue, signal) = (queue.clone(), signals[0].clone());
    thread::spawn(move || serve(&queue, 0, &signal, now, usize::MAX))
}

/// A thread that hands one job in.
fn producer(queue: &Arc<Queue<Modelled>>, ends: &Ends, now: Instant) -> thread::JoinHandle<()> {
    let (queue, ends) = (queue.clone(), ends.clone());
    thread::spawn(move || {
        push(&queue, now, &ends);
    })
}

fn assert_over(queue: &Queue<Modelled>, jobs: &[Ends]) {
    for ends in jobs {
        assert_eq!(ends.load(Ordering::Relaxed), 1, "a job ends once");
    }
    let snapshot = queue.snapshot();
    assert_eq!((snapshot.depth, snapshot.bytes, snapshot.waiting, snapshot.running), ([0; 3], 0, 0, 0));
    let outcomes: Outcomes = snapshot.outcomes.into_iter().sum();
    assert_eq!(outcomes.submitted, outcomes.settled());
}

fn two<T>(make: impl Fn() -> T) -> [T; 2] {
    [make(), make()]
}

fn model(body: impl Fn(Instant) + Sync + Send + 'static) {
    let now = Instant::now();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || body(now));
}

#[test]
fn two_producers_one_of_which_cancels_and_one_worker() {
    model(|now| {
        // Room for one: the second waits for admission.
        let (queue, signals) = queue(1, 1);
        let jobs = two(|| Arc::new(AtomicUsize::new(0)));
        let worker = worker(&queue, &signals, now);
        let producer = {
            let (queue, ends) = (queue.clone(), jobs[0].clone());
            thread::spawn(move || {
                let key = push(&queue, now, &ends);
                cancel(&queue, key);
            })
        };
        push(&queue, now, &jobs[1]);
        producer.join().unwrap();
        queue.drain(());
        worker.join().unwrap();
        assert_over(&queue, &jobs);
    });
}

#[test]
fn a_close_while_two_produce_and_one_works() {
    model(|now| {
        let (queue, signals) = queue(1, 1);
        let jobs = two(|| Arc::new(AtomicUsize::new(0)));
        let worker = worker(&queue, &signals, now);
        let producers = jobs.clone().map(|ends| producer(&queue, &ends, now));
        for removed in queue.close(()) {
            end(&removed.payload.expect("only a running job has none"));
        }
        for producer in producers {
            producer.join().unwrap();
        }
        worker.join().unwrap();
        assert_over(&queue, &jobs);
    });
}

#[test]
fn a_worker_that_closes_its_queue_and_dies_forgets_nobody() {
    model(|now| {
        let (queue, signals) = queue(2, 1);
        let jobs = two(|| Arc::new(AtomicUsize::new(0)));
        let producers = jobs.clone().map(|ends| producer(&queue, &ends, now));
        // As after too many failures: nobody serves what comes in between.
        for removed in queue.close(()) {
            end(&removed.payload.expect("only a running job has none"));
        }
        queue.leave(0);
        for producer in producers {
            producer.join().unwrap();
        }
        drop(signals);
        assert_over(&queue, &jobs);
    });
}

#[test]
fn a_worker_that_dies_leaves_its_wake_up_to_the_other() {
    model(|now| {
        let (queue, signals) = queue(2, 2);
        let jobs = two(|| Arc::new(AtomicUsize::new(0)));
        let workers = [1, usize::MAX].into_iter().enumerate().map(|(worker, most)| {
            let (queue, signal) = (queue.clone(), signals[worker].clone());
            thread::spawn(move || serve(&queue, worker, &signal, now, most))
        });
        let workers: Vec<_> = workers.collect();
        for ends in &jobs {
            push(&queue, now, ends);
        }
        queue.drain(());
        for worker in workers {
            worker.join().unwrap();
        }
        assert_over(&queue, &jobs);
    });
}

#[test]
fn a_queue_that_is_closed_for_room_is_closed_or_in_use_and_never_both() {
    model(|now| {
        let (queue, signals) = queue(1, 1);
        let jobs = [Arc::new(AtomicUsize::new(0))];
        let worker = worker(&queue, &signals, now);
        let producer = producer(&queue, &jobs[0], now);
        let closed = queue.close_if_idle(());
        let revived = closed && queue.reopen();
        producer.join().unwrap();
        if !closed || revived {
            queue.drain(());
        }
        worker.join().unwrap();
        assert_over(&queue, &jobs);
    });
}

#[test]
fn a_reservation_is_granted_when_the_job_before_it_goes() {
    model(|now| {
        let (queue, signals) = queue(1, 1);
        let jobs = two(|| Arc::new(AtomicUsize::new(0)));
        let worker = worker(&queue, &signals, now);
        let producer = producer(&queue, &jobs[0], now);
        let granted = Granted(Arc::new((AtomicUsize::new(0), Notify::new())));
        let key = queue.reserve(Priority::Normal, 1, now, granted.clone()).expect("it is open");
        granted.wait();
        assert!(queue.fill(key, offer(now, &jobs[1])).is_ok());
        producer.join().unwrap();
        queue.drain(());
        worker.join().unwrap();
        assert_over(&queue, &jobs);
    });
}
