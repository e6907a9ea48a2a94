//! A language model as a judge.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use coreml_client::{ModelClient, ModelRef};
use coreml_text::{ChatTemplate, Constraint, FinishReason, Generation, Sampling, TextModel};
use futures_core::future::BoxFuture;

use crate::prompt::{self, Frame};
use crate::{
    Answer, Case, Constitution, Deliberation, Distribution, Judge, JudgeError, Opinion, Passage, Task,
    Tribunal, Verdict,
};

/// A language model that gives its reason, names the passage that decides, and then decides.
///
/// The reason is sampled. What decides is not: the probabilities of "kept", "broken" and "unclear" are the model's own, from its
/// logits after the reason, over what it says of no work at all ([`Distribution::relative_to`]); and the passage is the likeliest of
/// the numbers. So no text of the model has to be understood, and every opinion has the form of one.
///
/// The work, what was asked, and the evidence are quoted line by line and cannot spell the model's special tokens. A work that is too
/// long for the model is read in parts; the part that most likely breaks the rule decides.
#[derive(Clone, Debug)]
pub struct LanguageJudge {
    name: String,
    model: TextModel,
    template: Option<Arc<ChatTemplate>>,
    temperature: f32,
    longest_reason: usize,
    priors: Arc<Mutex<HashMap<(String, String), Distribution>>>,
}

/// The choices between which the model decides, in the order of a [`Distribution`]. The quotation mark ends the word: no choice
/// begins like another.
const CHOICES: [&str; 3] = ["kept\"", "broken\"", "unclear\""];

/// What stands for no work.
const NO_WORK: &str = "N/A";

/// Rules whose priors are kept; more come from programs that make up rules.
const MOST_PRIORS: usize = 1_024;

impl LanguageJudge {
    /// A judge with reasons of at most 160 characters at temperature 1, and the model's own template, if it has one.
    #[must_use]
    pub fn new(name: impl Into<String>, model: TextModel) -> Self {
        let (temperature, longest_reason) = (1.0, 160);
        Self { name: name.into(), model, template: None, temperature, longest_reason, priors: Arc::default() }
    }

    /// With another template.
    #[must_use]
    pub fn template(mut self, template: ChatTemplate) -> Self {
        self.template = Some(Arc::new(template));
        self
    }

    /// How reasons are sampled; 0: always the likeliest.
    #[must_use]
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// The most characters of a reason; 0: the model decides without one.
    #[must_use]
    pub fn longest_reason(mut self, characters: usize) -> Self {
        self.longest_reason = characters;
        self
    }

    async fn opinion(&self, case: Case<'_>) -> Result<Opinion, JudgeError> {
        let prior = self.prior(&case).await?;
        let frame = self.frame(&case)?;
        let passages = (1..)
            .zip(case.passages)
            .map(|(number, passage)| prompt::passage(&self.model, number, passage))
            .collect::<Result<Vec<_>, _>>()?;
        let mut worst: Option<Opinion> = None;
        for (first, last) in self.parts(&frame, &passages)? {
            let found = self.part(&case, &frame, &passages, first..last, &prior).await?;
            let of = |opinion: &Opinion| opinion.distribution.of(crate::Finding::Broken);
            if worst.as_ref().is_none_or(|worst| of(&found) > of(worst)) {
                worst = Some(found);
            }
        }
        worst.ok_or(JudgeError::EmptyWork)
    }

    fn frame(&self, case: &Case<'_>) -> Result<Frame, JudgeError> {
        Frame::new(&self.model, self.template.as_deref().or(self.model.template()), case)
    }

    /// Runs of passages that fit into the model, each with room for the answer.
    fn parts(&self, frame: &Frame, passages: &[Vec<u32>]) -> Result<Vec<(usize, usize)>, JudgeError> {
        let fixed = frame.before.len() + frame.after.len() + self.room();
        let most = self.model.context().saturating_sub(1);
        let mut parts = Vec::new();
        let (mut first, mut length) = (0, 0);
        for (at, passage) in passages.iter().enumerate() {
            if fixed + passage.len() > most {
                let error = coreml_text::TextError::PromptTooLong { found: fixed + passage.len(), most };
                return Err(error.into());
            }
            if fixed + length + passage.len() > most {
                parts.push((first, at));
                (first, length) = (at, 0);
            }
            length += passage.len();
        }
        parts.push((first, passages.len()));
        Ok(parts)
    }

    /// Tokens for the answer: a character of a reason is at most four bytes, and no token is shorter than one.
    fn room(&self) -> usize {
        4 * self.longest_reason + 64
    }

    async fn part(
        &self,
        case: &Case<'_>,
        frame: &Frame,
        passages: &[Vec<u32>],
        part: std::ops::Range<usize>,
        prior: &Distribution,
    ) -> Result<Opinion, JudgeError> {
        let mut tokens = frame.with(&passages[part.clone()]);
        let reason = self.reason(case, tokens.clone()).await?;
        // The work may have talked the model into spelling what it likes.
        tokens.extend(prompt::plain(&self.model, &reason)?);
        self.own(&mut tokens, prompt::PASSAGE)?;
        let numbers: Vec<String> = part.clone().map(|at| format!("{},", at + 1)).collect();
        let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
        let likely = self.choose(case, &tokens, &numbers).await?;
        let best = (0..likely.len()).reduce(|best, i| if likely[i] > likely[best] { i } else { best });
        let best = best.unwrap_or(0);
        self.own(&mut tokens, numbers[best])?;
        self.own(&mut tokens, prompt::VERDICT)?;
        let raw = self.decide(case, &tokens).await?;
        let distribution = raw
            .relative_to(prior)
            .ok_or_else(|| JudgeError::Probabilities { found: format!("{raw:?} over {prior:?}") })?;
        Ok(Opinion { distribution, reason, passage: Some(part.start + best) })
    }

    async fn reason(&self, case: &Case<'_>, tokens: Vec<u32>) -> Result<String, JudgeError> {
        if self.longest_reason == 0 {
            return Ok(String::new());
        }
        // What a JSON string may have as it is, on one line.
        let pattern =
            format!(r#"[^"\\\x00-\x1f\x7f-\x{{9f}}\x{{2028}}\x{{2029}}]{{1,{}}}"#, self.longest_reason);
        let generation = Generation {
            most: 4 * self.longest_reason,
            sampling: Sampling { temperature: self.temperature, seed: case.seed, ..Sampling::default() },
            constraint: Some(Constraint::Regex(pattern)),
            ..options(case)
        };
        let completion = self.model.start(tokens, generation)?.complete().await?;
        match completion.finish {
            FinishReason::Deadline => Err(JudgeError::Deadline),
            // Half a character, if the tokens ran out in one.
            _ => Ok(completion.text.trim_end_matches('\u{fffd}').trim().to_owned()),
        }
    }

    async fn decide(&self, case: &Case<'_>, tokens: &[u32]) -> Result<Distribution, JudgeError> {
        let found = self.choose(case, tokens, &CHOICES).await?;
        match *found.as_slice() {
            [kept, broken, unclear] => Distribution::new(kept, broken, unclear),
            _ => None,
        }
        .ok_or_else(|| JudgeError::Probabilities { found: format!("{found:?}") })
    }

    async fn choose(
        &self,
        case: &Case<'_>,
        tokens: &[u32],
        choices: &[&str],
    ) -> Result<Vec<f32>, JudgeError> {
        let found = self.model.choose_after(tokens.to_vec(), choices, &options(case)).await?;
        match found.iter().any(|p| p.is_nan()) {
            true => Err(JudgeError::Probabilities { found: format!("{found:?}") }),
            false => Ok(found),
        }
    }

    /// Words of ours.
    fn own(&self, tokens: &mut Vec<u32>, text: &str) -> Result<(), JudgeError> {
        tokens.extend(self.model.tokenizer().encode_more(text).map_err(prompt::text_error)?);
        Ok(())
    }

    /// What the model says of a rule when there is no work.
    async fn prior(&self, case: &Case<'_>) -> Result<Distribution, JudgeError> {
        let key = (case.preamble.to_owned(), case.rule.text.clone());
        if let Some(&known) = self.priors.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(known);
        }
        let task = Task::new("", NO_WORK);
        let passages = [Passage { text: NO_WORK, start: 0, line: 1 }];
        let case = Case { task: &task, passages: &passages, ..*case };
        let work = prompt::passage(&self.model, 1, &passages[0])?;
        let mut tokens = self.frame(&case)?.with(&[work]);
        self.own(&mut tokens, prompt::PASSAGE)?;
        self.own(&mut tokens, "1,")?;
        self.own(&mut tokens, prompt::VERDICT)?;
        let found = self.decide(&case, &tokens).await?;
        let mut priors = self.priors.lock().unwrap_or_else(PoisonError::into_inner);
        if priors.len() >= MOST_PRIORS {
            priors.clear();
        }
        priors.insert(key, found);
        Ok(found)
    }
}

fn options(case: &Case<'_>) -> Generation {
    Generation { priority: case.priority, deadline: case.deadline, ..Generation::default() }
}

impl Judge for LanguageJudge {
    fn name(&self) -> &str {
        &self.name
    }

    fn consider<'a>(&'a self, case: Case<'a>) -> BoxFuture<'a, Result<Answer, JudgeError>> {
        Box::pin(async move { self.opinion(case).await.map(Answer::Opinion) })
    }

    fn samples(&self, wanted: u32) -> u32 {
        // Without chance it always says the same.
        if self.temperature == 0.0 || self.longest_reason == 0 { 1 } else { wanted }
    }
}

/// One language model under a constitution: a tribunal of one.
///
/// With the small model of the repository, whose interface is that of Apple's export of Mistral:
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/handbook/handbook.mlpackage");
/// use coreml_judge::{Constitution, MistralJudge, Rule, Task};
///
/// let model_ref = coreml_text::load_model_async(path).await?;
/// let judge = MistralJudge::new(model_ref)?.longest_reason(8);
/// let task = Task::new("Describe the function.", "It returns the length.");
/// let verdict = judge.deliberate(&task).await?;
/// println!("{}", serde_json::to_string_pretty(&verdict)?);
/// assert_eq!(verdict.rules.len(), Constitution::default().rules().len());
///
/// // With rules of one's own:
/// let rule = Rule::new("says-what", "It says what is returned.");
/// let judge = judge.constitution(Constitution::new("Short", vec![rule])?);
/// assert_eq!(judge.deliberate(&task).await?.rules[0].rule, "says-what");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct MistralJudge {
    judge: LanguageJudge,
    constitution: Arc<Constitution>,
    deliberation: Deliberation,
}

impl MistralJudge {
    /// A text model that the process-wide client has, see [`coreml_text::load_model`], under the default [`Constitution`].
    ///
    /// # Errors
    /// As [`TextModel::find`].
    pub fn new(model_ref: ModelRef) -> Result<Self, JudgeError> {
        let model = TextModel::find(&ModelClient::new(), model_ref)?;
        Ok(Self::from_judge(LanguageJudge::new("mistral", model)))
    }

    /// From a judge with a client, a template, or a temperature of its own, under the default [`Constitution`].
    #[must_use]
    pub fn from_judge(judge: LanguageJudge) -> Self {
        Self { judge, constitution: Arc::default(), deliberation: Deliberation::default() }
    }

    /// Judges by other rules.
    #[must_use]
    pub fn constitution(mut self, constitution: impl Into<Arc<Constitution>>) -> Self {
        self.constitution = constitution.into();
        self
    }

    /// The most characters of a reason, see [`LanguageJudge::longest_reason`].
    #[must_use]
    pub fn longest_reason(mut self, characters: usize) -> Self {
        self.judge = self.judge.longest_reason(characters);
        self
    }

    /// Asks in another way.
    #[must_use]
    pub fn deliberation(mut self, deliberation: Deliberation) -> Self {
        self.deliberation = deliberation;
        self
    }

    /// Judges a work.
    ///
    /// # Errors
    /// As [`Tribunal::deliberate`].
    ///
    /// # Cancel safety
    /// As [`Tribunal::deliberate`].
    pub async fn deliberate(&self, task: &Task) -> Result<Verdict, JudgeError> {
        let tribunal = Tribunal::new(Arc::clone(&self.constitution)).with(self.judge.clone());
        tribunal.deliberation(self.deliberation.clone()).deliberate(task).await
    }
}
