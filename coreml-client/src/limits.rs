use crate::Priority;

/// How much may be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) jobs: usize,
    pub(crate) bytes: usize,
}

/// The limits of one queue. Parsed: every class can hold at least one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    total: Limit,
    classes: [Limit; Priority::COUNT],
    /// Every how many dequeues the oldest job goes first; 0 = never.
    pub(crate) fairness: u32,
}

impl Limits {
    pub(crate) const DEFAULT_JOBS: usize = 64;
    pub(crate) const DEFAULT_BYTES: usize = 64 << 20;
    pub(crate) const DEFAULT_FAIRNESS: u32 = 8;

    /// A limit of no jobs is taken as one; a class may not hold more than the whole queue.
    pub(crate) fn new(total: Limit, classes: [Option<Limit>; Priority::COUNT], fairness: u32) -> Self {
        let total = Limit { jobs: total.jobs.max(1), bytes: total.bytes };
        let classes = classes.map(|class| match class {
            Some(class) => {
                Limit { jobs: class.jobs.clamp(1, total.jobs), bytes: class.bytes.min(total.bytes) }
            }
            None => total,
        });
        Self { total, classes, fairness }
    }

    pub(crate) fn total(&self) -> Limit {
        self.total
    }

    pub(crate) fn of(&self, priority: Priority) -> Limit {
        self.classes[priority.index()]
    }

    /// The most bytes that a job may have to fit into the empty queue.
    pub(crate) fn largest_job(&self, priority: Priority) -> usize {
        self.of(priority).bytes
    }
}
