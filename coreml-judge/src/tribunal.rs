//! Judges together, and what follows from their opinions.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coreml_client::Priority;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::verdict::decide;
use crate::{
    Answer, Case, Constitution, Distribution, Finding, GivenOpinion, Judge, JudgeError, Passage, Quote, Rule,
    RuleVerdict, Task, Verdict,
};

/// How judges are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deliberation {
    /// How often each judge is asked for each rule, by default once; judges that always say the same are asked once anyway.
    pub samples: u32,
    /// Where chance begins: the same number, the same verdict. `None`: another one each time.
    pub seed: Option<u64>,
    /// How urgent it is.
    pub priority: Priority,
    /// How long it may take, all in all.
    pub timeout: Option<Duration>,
    /// How many questions are under way at a time, by default 16; the rest wait for their turn here and not in the models' queues.
    pub at_once: NonZeroUsize,
}

impl Default for Deliberation {
    fn default() -> Self {
        const AT_ONCE: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not 0");
        Self { samples: 1, seed: None, priority: Priority::Normal, timeout: None, at_once: AT_ONCE }
    }
}

/// More opinions than this are a mistake of whoever asks.
const MOST_OPINIONS: usize = 100_000;

/// Judges under a constitution.
///
/// All of them are asked for every rule, at the same time; the mean of what they think decides, and who decided otherwise is on
/// record as dissent. Cheap to clone; clones share the judges.
///
/// ```
/// use coreml_client::ModelClient;
/// use coreml_judge::{Constitution, Decision, Task, TrainedJudge, Tribunal};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// let client = ModelClient::new();
/// let model_ref = client.load_model_async(format!("{root}/models/judge/judge.mlpackage")).await?;
/// let judge = TrainedJudge::new(&client, model_ref)?;
/// let constitution = Constitution::new("Documentation", judge.rules().to_vec())?;
///
/// let tribunal = Tribunal::new(constitution).with(judge);
/// let verdict = tribunal.deliberate(&Task::new("", "The function returns the number of the bytes in.")).await?;
/// assert_ne!(verdict.decision, Decision::Accept);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Tribunal {
    constitution: Arc<Constitution>,
    judges: Vec<Arc<dyn Judge>>,
    deliberation: Deliberation,
}

impl Tribunal {
    /// Without judges yet.
    #[must_use]
    pub fn new(constitution: impl Into<Arc<Constitution>>) -> Self {
        let deliberation = Deliberation::default();
        Self { constitution: constitution.into(), judges: Vec::new(), deliberation }
    }

    /// With one more judge.
    #[must_use]
    pub fn with(mut self, judge: impl Judge + 'static) -> Self {
        self.judges.push(Arc::new(judge));
        self
    }

    /// Asks the judges in another way.
    #[must_use]
    pub fn deliberation(mut self, deliberation: Deliberation) -> Self {
        self.deliberation = deliberation;
        self
    }

    /// What it judges by.
    #[must_use]
    pub fn constitution(&self) -> &Constitution {
        &self.constitution
    }

    /// Judges a work.
    ///
    /// # Errors
    /// [`JudgeError::EmptyWork`], [`JudgeError::NoJudge`], [`JudgeError::TooMany`]; [`JudgeError::Failed`] with the first judge that
    /// could not be asked, also because the time was over ([`JudgeError::is_deadline`]): a verdict lacks no opinion.
    ///
    /// # Cancel safety
    /// Dropping the future gives up what is queued and ends texts within one token.
    pub async fn deliberate(&self, task: &Task) -> Result<Verdict, JudgeError> {
        if self.judges.is_empty() {
            return Err(JudgeError::NoJudge);
        }
        let passages = task.passages();
        if passages.is_empty() {
            return Err(JudgeError::EmptyWork);
        }
        let Deliberation { samples, seed, priority, timeout, at_once } = self.deliberation;
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let rules = self.constitution.rules();
        let asked: Vec<(usize, u32)> = (0..)
            .zip(&self.judges)
            .flat_map(|(judge, one)| {
                (0..one.samples(samples.max(1)).max(1)).map(move |sample| (judge, sample))
            })
            .take(MOST_OPINIONS + 1)
            .collect();
        let found = asked.len().saturating_mul(rules.len());
        if found > MOST_OPINIONS {
            return Err(JudgeError::TooMany { found, most: MOST_OPINIONS });
        }
        // The rules of one judge and sample follow each other: what a model has read of the work serves them all.
        let cases = asked.iter().flat_map(|&(judge, sample)| {
            (0_u64..).zip(rules).map(move |(number, rule)| (judge, sample, number, rule))
        });
        let passages = &passages;
        let questions = cases.map(|(judge, sample, number, rule)| {
            let judge = &self.judges[judge];
            let case = Case {
                task,
                passages,
                preamble: self.constitution.preamble(),
                rule,
                sample,
                seed: seed.map(|seed| mix(seed, number << 32 | u64::from(sample))),
                priority,
                deadline,
            };
            async move {
                if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    return Err(failed(judge.name(), rule, JudgeError::Deadline));
                }
                let answer = judge.consider(case).await.map_err(|error| failed(judge.name(), rule, error))?;
                Ok(self.given(judge.name(), sample, answer, passages))
            }
        });
        // Collected first: a stream of closures would tie the future to one lifetime.
        let questions: Vec<_> = questions.collect();
        let given: Vec<GivenOpinion> = stream::iter(questions).buffered(at_once.get()).try_collect().await?;
        let mut of_rules: Vec<Vec<GivenOpinion>> = rules.iter().map(|_| Vec::new()).collect();
        for (i, opinion) in given.into_iter().enumerate() {
            of_rules[i % rules.len()].push(opinion);
        }
        let rules: Vec<RuleVerdict> =
            rules.iter().zip(of_rules).map(|(rule, opinions)| self.of_rule(rule, opinions)).collect();
        let (decision, score) = decide(&rules, self.constitution.accept_at());
        Ok(Verdict { constitution: self.constitution.name().to_owned(), decision, score, rules })
    }

    fn given(&self, judge: &str, sample: u32, answer: Answer, passages: &[Passage<'_>]) -> GivenOpinion {
        let judge = judge.to_owned();
        match answer {
            Answer::Opinion(opinion) => GivenOpinion {
                judge,
                sample,
                finding: Some(opinion.distribution.finding(self.constitution.decide_at())),
                distribution: opinion.distribution,
                reason: opinion.reason,
                quote: opinion.passage.and_then(|at| passages.get(at)).map(|passage| Quote {
                    text: passage.text.to_owned(),
                    start: passage.start,
                    line: passage.line,
                }),
                dissents: false,
            },
            Answer::Abstains { reason } => GivenOpinion {
                judge,
                sample,
                finding: None,
                distribution: Distribution::unknown(),
                reason,
                quote: None,
                dissents: false,
            },
        }
    }

    fn of_rule(&self, rule: &Rule, mut opinions: Vec<GivenOpinion>) -> RuleVerdict {
        let all: Vec<Distribution> =
            opinions.iter().filter(|o| o.finding.is_some()).map(|o| o.distribution).collect();
        let distribution = Distribution::mean(&all).unwrap_or_else(Distribution::unknown);
        let finding = distribution.finding(self.constitution.decide_at());
        for opinion in &mut opinions {
            let decided = opinion.finding.is_some_and(|one| one != Finding::Unclear);
            opinion.dissents = decided && opinion.finding != Some(finding);
        }
        // The first of equals, so that the verdict does not depend on anything but the opinions.
        let surest = opinions.iter().filter(|o| o.finding.is_some()).reduce(|best, one| {
            if one.distribution.of(finding) > best.distribution.of(finding) { one } else { best }
        });
        let (reason, quote) = match surest {
            Some(opinion) => (opinion.reason.clone(), opinion.quote.clone()),
            None => ("No judge has an opinion.".to_owned(), None),
        };
        RuleVerdict {
            rule: rule.id.clone(),
            text: rule.text.clone(),
            severity: rule.severity,
            weight: rule.weight,
            finding,
            confidence: distribution.confidence(),
            distribution,
            reason,
            quote,
            opinions,
        }
    }
}

impl std::fmt::Debug for Tribunal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let judges: Vec<&str> = self.judges.iter().map(|judge| judge.name()).collect();
        f.debug_struct("Tribunal")
            .field("constitution", &self.constitution.name())
            .field("judges", &judges)
            .field("deliberation", &self.deliberation)
            .finish()
    }
}

fn failed(judge: &str, rule: &Rule, source: JudgeError) -> JudgeError {
    JudgeError::Failed { judge: judge.to_owned(), rule: rule.id.clone(), source: Box::new(source) }
}

/// A seed for one question of many (SplitMix64, Steele et al. 2014): neighbours have nothing in common.
fn mix(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
