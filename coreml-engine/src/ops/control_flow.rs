//! `control_flow` ops that hold blocks: `cond` and `while_loop`.
//!
//! A block is a plan of its own ([`Body`](crate::plan::Body)) that shares constants and states with the plan around it.
//! What it captures are reads of the op, lent to the block while the op runs. All iterations of all loops of one prediction
//! count towards [`Limits::loop_iterations`](crate::Limits::loop_iterations).
//!
//! Semantics: coremltools, `iOS15/control_flow.py`.

use super::{Kernel, OpBuilder, OpDef, Slot};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::Ios13;
use crate::ir::Type;
use crate::types::DType;
use crate::value::{Outputs, ValueView};
use rten_tensor::prelude::*;

pub(crate) const OPS: &[OpDef] =
    &[OpDef::new("cond", &[Ios13], cond), OpDef::new("while_loop", &[Ios13], while_loop)];

/// Runs the first block if `pred` is true, else the second; its outputs are the block's.
fn cond(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let pred = op.input("pred")?;
    truth_type(&Type::Tensor(pred.ty.clone()), "`pred`")?;
    let count = op.output_count();
    for block in 0..2 {
        arity(op, block, 0, count)?;
        for i in 0..count {
            same_kind(op.block_output(block, i)?, op.output_kind(i)?, "output of a block")?;
        }
    }
    let (yes, no) = (op.block()?, op.block()?);
    Ok(Box::new(move |run| {
        let block = if truth(&run.any(pred.slot)?)? { &yes } else { &no };
        run.block(block, std::iter::empty())
    }))
}

/// While the first block says true, runs the second. Both take the loop's variables, the second makes the next ones.
fn while_loop(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let vars = op.values("loop_vars")?;
    let count = vars.len();
    if op.output_count() != count {
        let reason = format!("{count} variables and {} outputs", op.output_count());
        return Err(OpError::Invalid(reason));
    }
    arity(op, 0, count, 1)?;
    arity(op, 1, count, count)?;
    truth_type(op.block_output(0, 0)?, "the condition")?;
    for (i, (_, ty)) in vars.iter().enumerate() {
        same_kind(op.block_input(0, i)?, ty, "input of the condition")?;
        same_kind(op.block_input(1, i)?, ty, "input of the body")?;
        same_kind(op.block_output(1, i)?, ty, "output of the body")?;
        same_kind(op.output_kind(i)?, ty, "output")?;
    }
    let (condition, body) = (op.block()?, op.block()?);
    let slots: Vec<usize> = vars.into_iter().map(|(input, _)| input.slot).collect();
    Ok(Box::new(move |run| {
        // The plan counts what dies here when the op is done; until then, what the loop makes comes and goes.
        let before = run.used.live;
        let mut carried = Outputs::with_capacity(slots.len());
        for &slot in &slots {
            let moved = run.takes(slot);
            let value = run.take(slot)?;
            if !moved {
                run.used.add(value.shape(), run.limits)?;
            }
            carried.push(value);
        }
        loop {
            let lent = carried.iter().map(|value| Slot::Borrowed(value.view()));
            let mut answer = run.block(&condition, lent)?;
            let answer = answer.pop().ok_or_else(|| KernelError::value("the condition made nothing"))?;
            let again = truth(&answer.view())?;
            run.recycle(answer);
            if !again {
                break;
            }
            run.used.iterations = run.used.iterations.saturating_add(1);
            if run.used.iterations > run.limits.loop_iterations {
                return Err(KernelError::Endless { limit: run.limits.loop_iterations });
            }
            carried = run.block(&body, std::mem::take(&mut carried).into_iter().map(Slot::Owned))?;
            for value in &carried {
                run.used.add(value.shape(), run.limits)?;
            }
        }
        run.used.live = before;
        Ok(carried)
    }))
}

fn arity(op: &OpBuilder<'_>, block: usize, inputs: usize, outputs: usize) -> Result<(), OpError> {
    let found = op.block_arity(block)?;
    if found != (inputs, outputs) {
        return Err(OpError::Invalid(format!(
            "block {block} takes {} values and makes {}, where {inputs} and {outputs} are expected",
            found.0, found.1
        )));
    }
    Ok(())
}

/// Both tensors or both lists, and of one element type. What is known of the shapes may differ: each is checked while the
/// program runs.
fn same_kind(found: &Type, expected: &Type, what: &str) -> Result<(), OpError> {
    let same = match (found, expected) {
        (Type::Tensor(a), Type::Tensor(b)) | (Type::List(a), Type::List(b)) => a.dtype == b.dtype,
        (Type::Tensor(_) | Type::List(_) | Type::State(_), _) => false,
    };
    if same {
        return Ok(());
    }
    let words = |ty: &Type| match ty {
        Type::Tensor(ty) => ty.to_string(),
        Type::List(ty) => format!("a list of {ty}"),
        Type::State(ty) => format!("a state {ty}"),
    };
    Err(OpError::Invalid(format!("an {what} is {}, expected {}", words(found), words(expected))))
}

fn truth_type(ty: &Type, what: &str) -> Result<(), OpError> {
    match ty {
        Type::Tensor(ty) if ty.dtype == DType::Bool => Ok(()),
        Type::Tensor(ty) | Type::List(ty) | Type::State(ty) => {
            Err(OpError::Invalid(format!("{what} must be one boolean, found {ty}")))
        }
    }
}

/// The boolean in a tensor of one element.
fn truth(value: &ValueView<'_>) -> Result<bool, KernelError> {
    match value {
        ValueView::I32(view) if view.shape().iter().product::<usize>() == 1 => {
            Ok(view.iter().next().is_some_and(|&x| x != 0))
        }
        other => Err(KernelError::shape(format!("one boolean is needed, found shape {:?}", other.shape()))),
    }
}

#[cfg(test)]
mod tests {
    use rten::BufferPool;
    use rten_tensor::Tensor;

    use super::*;
    use crate::Limits;
    use crate::decode::DecodeError;
    use crate::ir::{Argument, Block, Constant, Function, Op, Opset, ValueId};
    use crate::plan::{Plan, StepError};
    use crate::types::TensorType;
    use crate::value::Value;

    /// A program that is written op by op; ops go to the innermost open block.
    struct Program {
        function: Function,
        open: Vec<Block>,
        inputs: Vec<(String, ValueId)>,
    }

    impl Program {
        fn new() -> Self {
            let function = Function { opset: Opset::Ios18, ..Function::default() };
            Self { function, open: vec![Block::default()], inputs: Vec::new() }
        }

        fn value(&mut self, ty: Type) -> ValueId {
            let name = format!("v{}", self.function.values.len());
            self.function.new_value(name, ty)
        }

        fn input(&mut self, ty: Type) -> ValueId {
            let id = self.value(ty);
            self.inputs.push((format!("in{}", self.inputs.len()), id));
            id
        }

        fn constant(&mut self, constant: Constant) -> ValueId {
            self.function.new_constant("c", constant)
        }

        fn op_with(
            &mut self,
            kind: &str,
            arguments: &[(&str, &[ValueId])],
            types: &[Type],
            blocks: Vec<Block>,
        ) -> Vec<ValueId> {
            let outputs: Vec<_> = types.iter().map(|ty| self.value(ty.clone())).collect();
            let arguments = arguments.iter().map(|(name, ids)| {
                let argument = match ids {
                    [id] => Argument::One(*id),
                    _ => Argument::Many(ids.to_vec()),
                };
                ((*name).into(), argument)
            });
            let arguments = arguments.collect();
            let op = Op { kind: kind.into(), arguments, outputs: outputs.clone(), blocks };
            self.open.last_mut().unwrap().ops.push(op);
            outputs
        }

        fn op(&mut self, kind: &str, arguments: &[(&str, ValueId)], ty: Type) -> ValueId {
            let arguments: Vec<_> =
                arguments.iter().map(|(name, id)| (*name, std::slice::from_ref(id))).collect();
            self.op_with(kind, &arguments, &[ty], vec![])[0]
        }

        fn block(
            &mut self,
            inputs: &[Type],
            fill: impl FnOnce(&mut Self, &[ValueId]) -> Vec<ValueId>,
        ) -> Block {
            let inputs: Vec<_> = inputs.iter().map(|ty| self.value(ty.clone())).collect();
            self.open.push(Block::default());
            let outputs = fill(self, &inputs);
            Block { inputs, outputs, ..self.open.pop().unwrap() }
        }

        fn compile(mut self, outputs: &[ValueId], limits: &Limits) -> Result<Plan, String> {
            self.function.body = self.open.pop().unwrap();
            let outputs = outputs.iter().enumerate().map(|(i, id)| (format!("out{i}"), *id)).collect();
            Plan::compile(self.function, self.inputs, outputs, limits).map_err(|error| match error {
                DecodeError::Op { source, .. } => source.to_string(),
                other => format!("{other:?}"),
            })
        }
    }

    fn run(plan: &Plan, inputs: &[Value], states: &mut [Value]) -> Result<Vec<Value>, StepError> {
        let pool = BufferPool::new();
        plan.run(inputs.iter().map(Value::view), states, &pool, |value| {
            plan.outputs.iter().map(|port| value(port.place).unwrap().to_owned_in(&pool)).collect()
        })
    }

    fn floats(shape: &[usize]) -> Type {
        Type::Tensor(TensorType::fixed(DType::F32, shape))
    }

    fn int() -> Type {
        Type::Tensor(TensorType::fixed(DType::I32, &[]))
    }

    fn boolean() -> Type {
        Type::Tensor(TensorType::fixed(DType::Bool, &[]))
    }

    fn data(value: &Value) -> Vec<f32> {
        match value {
            Value::F32(tensor) => tensor.to_vec(),
            Value::I32(tensor) => tensor.iter().map(|&x| x as f32).collect(),
        }
    }

    /// `for i in 0..n { x = body(x) }`, with `n` the first input.
    fn counted(
        ty: Type,
        body: impl FnOnce(&mut Program, ValueId, ValueId) -> ValueId,
    ) -> (Program, Vec<ValueId>) {
        let mut p = Program::new();
        let n = p.input(int());
        let x = p.input(ty.clone());
        let zero = p.constant(Constant::int(0));
        let condition = p.block(&[int(), ty.clone()], |p, vars| {
            vec![p.op("less", &[("x", vars[0]), ("y", n)], boolean())]
        });
        let body = p.block(&[int(), ty.clone()], |p, vars| {
            let one = p.constant(Constant::int(1));
            let next = p.op("add", &[("x", vars[0]), ("y", one)], int());
            vec![next, body(p, vars[0], vars[1])]
        });
        let out = p.op_with("while_loop", &[("loop_vars", &[zero, x])], &[int(), ty], vec![condition, body]);
        (p, out)
    }

    fn n(count: i32) -> Value {
        Tensor::from(count).into()
    }

    #[test]
    fn a_loop_without_end_fails_at_the_limit() {
        let (p, out) = counted(floats(&[2]), |p, _, x| p.op("tanh", &[("x", x)], floats(&[2])));
        let limits = Limits { loop_iterations: 1000, ..Limits::default() };
        let plan = p.compile(&out, &limits).unwrap();
        let x = || Value::from(Tensor::from([0.5_f32, -1.0]));
        assert_eq!(data(&run(&plan, &[n(1000), x()], &mut []).unwrap()[0]), [1000.0]);
        let error = run(&plan, &[n(1001), x()], &mut []).err().unwrap();
        assert!(matches!(error.source, KernelError::Endless { limit: 1000 }), "{}", error.source);
    }

    #[test]
    fn what_is_alive_is_counted_through_all_blocks() {
        // In every iteration 3 tensors of 100 elements are alive at most: the variable, its exponential, and their sum.
        let ty = floats(&[100]);
        let (p, out) = counted(ty.clone(), |p, _, x| {
            let y = p.op("exp", &[("x", x)], ty.clone());
            p.op("sub", &[("x", x), ("y", y)], ty)
        });
        let inputs = [n(50), Value::from(Tensor::<f32>::zeros(&[100]))];
        let compile = |p: Program, total| {
            p.compile(&out, &Limits { total_elements: total, ..Limits::default() }).unwrap()
        };
        let (q, _) = counted(floats(&[100]), |p, _, x| {
            let y = p.op("exp", &[("x", x)], floats(&[100]));
            p.op("sub", &[("x", x), ("y", y)], floats(&[100]))
        });
        assert!(run(&compile(p, 310), &inputs, &mut []).is_ok(), "nothing adds up over the iterations");
        let error = run(&compile(q, 150), &inputs, &mut []).err().unwrap();
        let KernelError::Inner { op, source, .. } = error.source else { panic!("{}", error.source) };
        assert!(op == "exp" && matches!(*source, KernelError::TooLarge { limit: 150, .. }), "{op}: {source}");
    }

    #[test]
    fn a_loop_writes_and_reads_states_even_if_nobody_reads_its_result() {
        let ty = TensorType::fixed(DType::F32, &[2]);
        let mut p = Program::new();
        let state = p.input(Type::State(ty.clone()));
        let count = p.input(int());
        let zero = p.constant(Constant::int(0));
        let condition =
            p.block(&[int()], |p, vars| vec![p.op("less", &[("x", vars[0]), ("y", count)], boolean())]);
        let body = p.block(&[int()], |p, vars| {
            let one = p.constant(Constant::int(1));
            let two = p.constant(Constant::scalar(2.0));
            let old = p.op("read_state", &[("input", state)], floats(&[2]));
            let new = p.op("mul", &[("x", old), ("y", two)], floats(&[2]));
            p.op_with("write_state", &[("input", &[state]), ("data", &[new])], &[], vec![]);
            vec![p.op("add", &[("x", vars[0]), ("y", one)], int())]
        });
        p.op_with("while_loop", &[("loop_vars", &[zero])], &[int()], vec![condition, body]);
        let read = p.op("read_state", &[("input", state)], floats(&[2]));
        let plan = p.compile(&[read], &Limits::default()).unwrap();
        let mut states = [Value::from(Tensor::from([1.0_f32, -3.0]))];
        let out = run(&plan, &[n(4)], &mut states).unwrap();
        assert_eq!(data(&out[0]), [16.0, -48.0]);
        assert_eq!(data(&states[0]), [16.0, -48.0]);
    }

    #[test]
    fn a_variable_that_is_passed_on_twice_or_captured_as_well_keeps_its_value() {
        // Both variables start as the same value, which the body captures too; they swap.
        let ty = floats(&[2]);
        let mut p = Program::new();
        let x = p.input(ty.clone());
        let y = p.op("exp", &[("x", x)], ty.clone());
        let ten = p.constant(Constant::scalar(10.0));
        let vars = [ty.clone(), ty.clone()];
        let condition = p.block(&vars, |p, vars| {
            let least = p.op("reduce_min", &[("x", vars[0])], floats(&[]));
            let small = p.op("less", &[("x", least), ("y", ten)], boolean());
            vec![small]
        });
        let body = p.block(&vars, |p, vars| {
            let sum = p.op("add", &[("x", vars[0]), ("y", y)], ty.clone());
            vec![vars[1], sum]
        });
        let out = p.op_with("while_loop", &[("loop_vars", &[y, y])], &vars, vec![condition, body]);
        let plan = p.compile(&[out[0], out[1], y], &Limits::default()).unwrap();
        let start = [2.0_f32, 3.0];
        let out = run(&plan, &[Tensor::from(start.map(f32::ln)).into()], &mut []).unwrap();
        let (mut a, mut b) = (start, start);
        while a[0].min(a[1]) < 10.0 {
            (a, b) = (b, [a[0] + start[0], a[1] + start[1]]);
        }
        crate::ops::testing::assert_close(&data(&out[0]), &a, 1e-5);
        crate::ops::testing::assert_close(&data(&out[1]), &b, 1e-5);
        crate::ops::testing::assert_close(&data(&out[2]), &start, 1e-5);
    }

    #[test]
    fn a_variable_of_another_shape_than_declared_is_an_error() {
        // Declared to stay [2], it grows to [4] in the body, which is declared not to know.
        let unknown = Type::Tensor(TensorType::of_rank(DType::F32, 1));
        let (p, out) = counted(floats(&[2]), |p, _, x| {
            let axis = p.constant(Constant::int(0));
            p.op_with(
                "concat",
                &[("values", &[x, x]), ("axis", &[axis])],
                std::slice::from_ref(&unknown),
                vec![],
            )[0]
        });
        let plan = p.compile(&out, &Limits::default()).unwrap();
        let x = || Value::from(Tensor::from([1.0_f32, 2.0]));
        assert_eq!(data(&run(&plan, &[n(0), x()], &mut []).unwrap()[1]), [1.0, 2.0]);
        for count in [1, 2] {
            let error = run(&plan, &[n(count), x()], &mut []).err().unwrap();
            assert!(matches!(error.source, KernelError::Type { .. }), "{}", error.source);
        }
    }

    #[test]
    fn blocks_that_do_not_go_together_are_refused() {
        let build = |inputs: &[Type], answer: Type, made: Type, declared: Type| {
            let mut p = Program::new();
            let x = p.input(floats(&[2]));
            let flag = p.input(answer);
            let other = p.input(made);
            let condition = p.block(inputs, |_, _| vec![flag]);
            let body = p.block(inputs, |_, _| vec![other]);
            let out = p.op_with("while_loop", &[("loop_vars", &[x])], &[declared], vec![condition, body]);
            p.compile(&out, &Limits::default()).map(|_| ()).unwrap_err()
        };
        let f = floats(&[2]);
        let short = build(&[], boolean(), f.clone(), f.clone());
        assert!(short.contains("block 0 takes 0 values"), "{short}");
        let answer = build(std::slice::from_ref(&f), int(), f.clone(), f.clone());
        assert!(answer.contains("must be one boolean"), "{answer}");
        let made = build(std::slice::from_ref(&f), boolean(), int(), f.clone());
        assert!(made.contains("output of the body is int32"), "{made}");
        let declared = build(std::slice::from_ref(&f), boolean(), f.clone(), int());
        assert!(declared.contains("output is int32"), "{declared}");
        let list = build(
            std::slice::from_ref(&f),
            boolean(),
            f.clone(),
            Type::List(TensorType::fixed(DType::F32, &[2])),
        );
        assert!(list.contains("a list"), "{list}");

        let mut p = Program::new();
        let x = p.input(f.clone());
        let block = p.block(&[], |_, _| vec![x]);
        let out = p.op_with("exp", &[("x", &[x])], &[f], vec![block]);
        let error = p.compile(&out, &Limits::default()).err().unwrap();
        assert!(error.contains("blocks"), "{error}");
    }

    #[test]
    fn an_unknown_op_in_a_dead_block_is_found() {
        let f = floats(&[2]);
        let mut p = Program::new();
        let x = p.input(f.clone());
        let pred = p.input(boolean());
        let blocks = [(); 2].map(|()| p.block(&[], |p, _| vec![p.op("frobnicate", &[("x", x)], f.clone())]));
        p.op_with("cond", &[("pred", &[pred])], &[f], blocks.into());
        let error = p.compile(&[x], &Limits::default()).err().unwrap();
        assert!(error.contains("unknown op"), "{error}");
    }
}
