//! A trained head: a small model that knows a few rules and reads a passage at a time.

use coreml_bridge::{Dtype, Features, Tensor};
use coreml_client::{InferenceRequest, ModelClient, ModelRef};
use futures_core::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::{Answer, Case, Distribution, Judge, JudgeError, Opinion, Rule};

/// A model that was trained to tell whether a passage keeps a rule, for rules that its metadata names.
///
/// Input `text` (int32 `[1, n]`: bytes of UTF-8, each one higher, then zeros) and `rule` (int32 `[1]`), output `probabilities`
/// (`[1, 2]`: kept, broken). Metadata `rules`: a JSON list of pairs of id and text; `shortest`: the fewest bytes that it was trained
/// on. It judges a rule of a constitution only if id and text are those that it was trained for, and abstains otherwise; it leaves
/// aside passages that are too short or too long for it. White space is one blank to it. The passage that most likely breaks a rule
/// decides.
///
/// `models/judge` has one and says how well it judges.
#[derive(Clone, Debug)]
pub struct TrainedJudge {
    client: ModelClient,
    model_ref: ModelRef,
    rules: Vec<Rule>,
    length: usize,
    shortest: usize,
}

/// Why a model is not a judging head.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{model} is not a judging head: {reason}")]
#[non_exhaustive]
pub struct UnknownHead {
    /// The model.
    pub model: String,
    /// What is missing, or otherwise than it should be.
    pub reason: String,
}

/// Passages of one question that are under way at a time.
const AT_ONCE: usize = 8;

impl TrainedJudge {
    /// A head that `client` has loaded.
    ///
    /// # Errors
    /// [`JudgeError::Client`] if it is not loaded, [`JudgeError::UnknownHead`] if it is another kind of model.
    pub fn new(client: &ModelClient, model_ref: ModelRef) -> Result<Self, JudgeError> {
        let description = client.description(model_ref)?;
        let unknown = |reason: String| UnknownHead { model: model_ref.to_string(), reason };
        let input = |name: &str| {
            description
                .input(name)
                .and_then(|feature| feature.kind.tensor())
                .filter(|spec| spec.dtype == Dtype::Int32)
                .ok_or_else(|| unknown(format!("it has no int32 input `{name}`")))
        };
        let length = match *input("text")?.shape.as_slice() {
            [1, length] if length > 0 => length,
            ref other => return Err(unknown(format!("`text` has the shape {other:?}, not [1, n]")).into()),
        };
        if input("rule")?.shape != [1] {
            return Err(unknown("`rule` is not one number".into()).into());
        }
        if description.output("probabilities").is_none() {
            return Err(unknown("it has no output `probabilities`".into()).into());
        }
        let user = &description.metadata.user;
        let json = user.get("rules").ok_or_else(|| unknown("its metadata has no `rules`".into()))?;
        let pairs: Vec<(String, String)> =
            serde_json::from_str(json).map_err(|error| unknown(format!("its `rules`: {error}")))?;
        let shortest = user.get("shortest").map_or(Ok(1), |text| text.parse());
        let shortest = shortest.map_err(|error| unknown(format!("its `shortest`: {error}")))?;
        let rules = pairs.into_iter().map(|(id, text)| Rule::new(id, text)).collect();
        Ok(Self { client: client.clone(), model_ref, rules, length, shortest })
    }

    /// The rules that it knows.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The probability that one passage breaks a rule, by the rule's place in [`rules`](Self::rules).
    async fn broken(&self, rule: usize, text: &str, case: &Case<'_>) -> Result<f32, JudgeError> {
        let mut ids: Vec<i32> = text.bytes().map(|byte| i32::from(byte) + 1).collect();
        ids.resize(self.length, 0);
        let tensor = |shape: &[usize], elements| {
            Tensor::from_vec(shape, elements).map_err(|error| JudgeError::Other(error.into()))
        };
        let number = i32::try_from(rule).map_err(|error| JudgeError::Other(error.into()))?;
        let features = Features::new()
            .with("text", tensor(&[1, self.length], ids)?)
            .with("rule", tensor(&[1], vec![number])?);
        let mut request =
            InferenceRequest::new(self.model_ref, features).priority(case.priority).wanted(["probabilities"]);
        request.deadline = case.deadline;
        let result = self.client.enqueue_inference(request).await?;
        let strange = |found: String| JudgeError::Probabilities { found };
        let tensor = result.outputs.tensor("probabilities").map_err(|error| strange(error.to_string()))?;
        let found =
            tensor.cast(Dtype::Float32).to_vec::<f32>().map_err(|error| strange(error.to_string()))?;
        match *found.as_slice() {
            // A half has three digits.
            [kept, broken] if kept >= 0.0 && broken >= 0.0 && (kept + broken - 1.0).abs() < 0.01 => {
                Ok(broken / (kept + broken))
            }
            _ => Err(strange(format!("{found:?}"))),
        }
    }

    async fn opinion(&self, case: Case<'_>) -> Result<Answer, JudgeError> {
        let known = self.rules.iter().position(|rule| rule.id == case.rule.id && rule.text == case.rule.text);
        let Some(rule) = known else {
            let reason = "The head was not trained for this rule.".to_owned();
            return Ok(Answer::Abstains { reason });
        };
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let texts: Vec<(usize, String)> = (0..)
            .zip(case.passages)
            .map(|(at, passage)| (at, words(passage.text)))
            .filter(|(_, text)| (self.shortest..=self.length).contains(&text.len()))
            .collect();
        let questions: Vec<_> = texts
            .iter()
            .map(|(at, text)| async { Ok::<_, JudgeError>((*at, self.broken(rule, text, &case).await?)) })
            .collect();
        let found: Vec<(usize, f32)> = stream::iter(questions).buffered(AT_ONCE).try_collect().await?;
        // The first of equals.
        let worst = found.iter().copied().reduce(|worst, one| if one.1 > worst.1 { one } else { worst });
        let Some((at, broken)) = worst else {
            let reason = "No passage has a length that the head can read.".to_owned();
            return Ok(Answer::Abstains { reason });
        };
        let likely = found.iter().filter(|(_, broken)| *broken > 0.5).count();
        let unread = case.passages.len() - found.len();
        let mut reason = match likely {
            0 => format!("None of {} passages seems to break it; this one comes nearest.", found.len()),
            1 => format!("One of {} passages seems to break it.", found.len()),
            n => format!("{n} of {} passages seem to break it; this one most.", found.len()),
        };
        if unread > 0 {
            reason += &format!(" {unread} more were too short or too long to be read.");
        }
        let distribution = Distribution::new(1.0 - broken, broken, 0.0)
            .ok_or_else(|| JudgeError::Probabilities { found: broken.to_string() })?;
        Ok(Answer::Opinion(Opinion { distribution, reason, passage: Some(at) }))
    }
}

impl Judge for TrainedJudge {
    fn name(&self) -> &str {
        "trained head"
    }

    fn consider<'a>(&'a self, case: Case<'a>) -> BoxFuture<'a, Result<Answer, JudgeError>> {
        Box::pin(self.opinion(case))
    }

    fn samples(&self, _: u32) -> u32 {
        1
    }
}
