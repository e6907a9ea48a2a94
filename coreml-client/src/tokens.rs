//! Who may predict at the same time: several models compete for one Neural Engine, and some cannot bear company.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use coreml_bridge::ComputeUnits;
use crossbeam_channel::{Receiver, Sender};

use crate::queue::Wake;

/// Something that computes, for a limit on how many predictions may use it at once.
///
/// A model counts for each unit that its [`ComputeUnits`] allow it to use: which one Core ML takes, it does not say.
///
/// ```
/// use coreml_client::{ComputeUnit, ModelClient};
///
/// let client = ModelClient::builder().max_concurrent(ComputeUnit::NeuralEngine, 1).build();
/// # drop(client);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ComputeUnit {
    /// The CPU.
    Cpu,
    /// The GPU.
    Gpu,
    /// The Neural Engine.
    NeuralEngine,
}

/// How far predictions exclude each other, see [`ModelClientBuilder::serialize`](crate::ModelClientBuilder::serialize).
///
/// ```
/// use coreml_client::{ModelClient, Serial};
///
/// let client = ModelClient::builder().serialize(Serial::PerProcess).build();
/// # drop(client);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Serial {
    /// Not at all, but for the limits of [`ModelClientBuilder::max_concurrent`](crate::ModelClientBuilder::max_concurrent).
    #[default]
    Free,
    /// One prediction of a model at a time, whatever the number of its threads and versions.
    PerModel,
    /// One prediction at a time among all runtimes of this process that say so: Core ML has crashed when two models
    /// predicted at once.
    PerProcess,
}

const KINDS: usize = 3;

/// A set of kinds of tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mask(u8);

impl Mask {
    const FIRST: Self = Self(1);

    pub(crate) fn of(units: ComputeUnits) -> Self {
        let list: &[ComputeUnit] = match units {
            ComputeUnits::CpuOnly => &[ComputeUnit::Cpu],
            ComputeUnits::CpuAndGpu => &[ComputeUnit::Cpu, ComputeUnit::Gpu],
            ComputeUnits::CpuAndNeuralEngine => &[ComputeUnit::Cpu, ComputeUnit::NeuralEngine],
            ComputeUnits::All => &[ComputeUnit::Cpu, ComputeUnit::Gpu, ComputeUnit::NeuralEngine],
        };
        Self(list.iter().fold(0, |mask, unit| mask | 1 << *unit as usize))
    }

    fn has(self, kind: usize) -> bool {
        self.0 & (1 << kind) != 0
    }
}

/// Tokens of a few kinds. Who needs several takes all or none; the order is that of asking, and nobody slips past
/// another who waits for the same kind, so nobody starves and nobody is deadlocked.
pub(crate) struct Tokens(Mutex<State>);

struct State {
    free: [usize; KINDS],
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    mask: Mask,
    granted: Arc<AtomicBool>,
    wake: Sender<()>,
}

impl Tokens {
    /// `None` = as many as are asked for.
    pub(crate) fn new(limits: [Option<usize>; KINDS]) -> Arc<Self> {
        let free = limits.map(|limit| limit.map_or(usize::MAX / 2, |limit| limit.max(1)));
        Arc::new(Self(Mutex::new(State { free, waiting: VecDeque::new() })))
    }

    /// One token: a lock with a queue before it.
    pub(crate) fn one() -> Arc<Self> {
        Self::new([Some(1), None, None])
    }

    fn of_process() -> &'static Arc<Self> {
        static TOKENS: OnceLock<Arc<Tokens>> = OnceLock::new();
        TOKENS.get_or_init(Self::one)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, mask: Mask) {
        let woken = {
            let mut state = self.lock();
            for kind in 0..KINDS {
                state.free[kind] += usize::from(mask.has(kind));
            }
            state.grant()
        };
        for wake in woken {
            wake.wake();
        }
    }
}

impl State {
    fn take(&mut self, mask: Mask) -> bool {
        let available = (0..KINDS).all(|kind| !mask.has(kind) || self.free[kind] > 0);
        if available {
            for kind in 0..KINDS {
                self.free[kind] -= usize::from(mask.has(kind));
            }
        }
        available
    }

    /// Gives out what is free, in the order of asking.
    fn grant(&mut self) -> Vec<Sender<()>> {
        let mut woken = Vec::new();
        let mut spoken_for = 0_u8;
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|waiter| {
            let granted = waiter.mask.0 & spoken_for == 0 && self.take(waiter.mask);
            if granted {
                waiter.granted.store(true, Ordering::Release);
                woken.push(waiter.wake.clone());
            } else {
                spoken_for |= waiter.mask.0;
            }
            !granted
        });
        self.waiting = waiting;
        woken
    }
}

/// What a version's threads pass before each prediction.
#[derive(Clone, Default)]
pub(crate) struct Gates(Vec<(Arc<Tokens>, Mask)>);

impl Gates {
    pub(crate) fn new(serial: Serial, model: &Arc<Tokens>, units: Option<&Arc<Tokens>>, mask: Mask) -> Self {
        // Always in this order, so that no two wait for each other.
        let mut gates = Vec::new();
        if serial == Serial::PerModel {
            gates.push((Arc::clone(model), Mask::FIRST));
        }
        gates.extend(units.map(|units| (Arc::clone(units), mask)));
        if serial == Serial::PerProcess {
            gates.push((Arc::clone(Tokens::of_process()), Mask::FIRST));
        }
        Self(gates)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits for a token of each gate, on the thread's own wake-ups; `None` if `stop` says so meanwhile.
    pub(crate) fn pass(
        &self,
        wake: &Sender<()>,
        signals: &Receiver<()>,
        stop: impl Fn() -> bool,
    ) -> Option<Passage<'_>> {
        let mut passage = Passage(Vec::with_capacity(self.0.len()));
        for (tokens, mask) in &self.0 {
            let granted = Arc::new(AtomicBool::new(false));
            let took = {
                let mut state = tokens.lock();
                let nobody_before = state.waiting.iter().all(|waiter| waiter.mask.0 & mask.0 == 0);
                let took = nobody_before && state.take(*mask);
                if !took {
                    let waiter = Waiter { mask: *mask, granted: Arc::clone(&granted), wake: wake.clone() };
                    state.waiting.push_back(waiter);
                }
                took
            };
            if !took && !wait(tokens, &granted, signals, &stop) {
                return None;
            }
            passage.0.push((tokens, *mask));
        }
        Some(passage)
    }
}

fn wait(tokens: &Tokens, granted: &Arc<AtomicBool>, signals: &Receiver<()>, stop: impl Fn() -> bool) -> bool {
    loop {
        if granted.load(Ordering::Acquire) {
            return true;
        }
        if stop() {
            let woken = {
                let mut state = tokens.lock();
                state.waiting.retain(|waiter| !Arc::ptr_eq(&waiter.granted, granted));
                // Who waited behind this one may go now. A token that came in the meantime is taken after all.
                state.grant()
            };
            for wake in woken {
                wake.wake();
            }
            return granted.load(Ordering::Acquire);
        }
        // The caller holds a sender, so there always is one.
        let _ = signals.recv();
    }
}

/// Leave to predict, until it is dropped.
pub(crate) struct Passage<'a>(Vec<(&'a Arc<Tokens>, Mask)>);

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        for (tokens, mask) in self.0.drain(..).rev() {
            tokens.give_back(mask);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn mask(units: ComputeUnits) -> Mask {
        Mask::of(units)
    }

    #[test]
    fn who_needs_several_units_takes_all_or_none_and_is_not_slipped_past() {
        let tokens = Tokens::new([Some(1), Some(1), Some(1)]);
        let gates = |units| Gates::new(Serial::Free, &Tokens::one(), Some(&tokens), mask(units));
        let (cpu, all) = (gates(ComputeUnits::CpuOnly), gates(ComputeUnits::All));
        let (wake, signals) = crossbeam_channel::bounded(1);
        let first = cpu.pass(&wake, &signals, || false).expect("free");

        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let (all, order, tokens) = (&all, &order, &tokens);
            let waiting = |n| {
                while tokens.lock().waiting.len() < n {
                    thread::yield_now()
                }
            };
            scope.spawn(move || {
                let (wake, signals) = crossbeam_channel::bounded(1);
                let passage = all.pass(&wake, &signals, || false).expect("never stopped");
                order.lock().unwrap().push("all");
                drop(passage);
            });
            waiting(1);
            let cpu = &cpu;
            scope.spawn(move || {
                let (wake, signals) = crossbeam_channel::bounded(1);
                let passage = cpu.pass(&wake, &signals, || false).expect("never stopped");
                order.lock().unwrap().push("cpu");
                drop(passage);
            });
            waiting(2);
            assert_eq!(tokens.lock().free, [0, 1, 1], "nothing is hoarded by who still waits");
            drop(first);
        });
        assert_eq!(*order.lock().unwrap(), ["all", "cpu"]);
        assert_eq!(tokens.lock().free, [1, 1, 1]);
    }

    #[test]
    fn who_is_stopped_while_waiting_leaves_the_line_to_the_next() {
        let tokens = Tokens::one();
        let gates = Gates(vec![(Arc::clone(&tokens), Mask::FIRST)]);
        let (wake, signals) = crossbeam_channel::bounded(1);
        let first = gates.pass(&wake, &signals, || false).expect("free");
        let (own_wake, own_signals) = crossbeam_channel::bounded(1);
        assert!(gates.pass(&own_wake, &own_signals, || true).is_none());
        assert!(tokens.lock().waiting.is_empty());
        drop(first);
        let again = gates.pass(&wake, &signals, || false);
        assert!(again.is_some());
        thread::sleep(Duration::ZERO);
    }
}
