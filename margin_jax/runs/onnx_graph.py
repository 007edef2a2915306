"""A function of one batch as an ONNX graph, from what JAX traces of it.

Every primitive that inference needs is one ONNX operator or two; what depends on no input, such as
the factors of a batch normalisation, is computed here and becomes a constant. Operators broadcast
as NumPy does, so that an array may have length 1 where JAX has its full length, above all the
batch: it is expanded only where that matters.

It is longer than 300 lines, as each primitive is a method of the one graph that they all add to.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np
from jax import Array

OPSET, IR_VERSION = 18, 9
INPUT, OUTPUT = "examples", "embeddings"
_BINARY = ("add", "sub", "mul", "div", "max", "min", "pow", "and", "or")
_UNARY = ("neg", "abs", "exp", "log", "sqrt", "tanh", "erf", "not")
_SAME = {name: name.capitalize() for name in (*_BINARY, *_UNARY)} | {
    "logistic": "Sigmoid",
    "copy": "Identity",
    "stop_gradient": "Identity",
    "gt": "Greater",
    "lt": "Less",
    "ge": "GreaterOrEqual",
    "le": "LessOrEqual",
    "eq": "Equal",
}
# These take two operations, or say more.
_ELEMENTWISE = {"square", "rsqrt", "erfc", "integer_pow", "ne", "select_n", "convert_element_type"}
_REDUCED = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Functions within functions, that are written out.
_CALLS = {"jit", "pjit", "closed_call", "remat2", "checkpoint"}
_CALLS |= {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


class Value(NamedTuple):
    """An array of the graph.

    Attributes:
        name: of a node's output; None if it is known.
        known: what it is, if it depends on no input.
        shape: as it is; where JAX has a longer one, a length of 1 stands for all.
    """

    name: str | None
    known: Any
    shape: tuple[Any, ...]


def onnx_model(
    embed: Callable[[Array], Array], example_shape: Sequence[int], dtype: Any, about: str
) -> bytes:
    """A model of ONNX, from ``examples`` [n, ...] to ``embeddings`` float32[n, dim].

    Args:
        embed: of examples [n, *example_shape] of the type.
        example_shape: without n, which the model leaves open.
        dtype: uint8 or float32.
        about: text in the model.

    Raises:
        ValueError: if the package onnx is missing, for an operation that is none of these, or for a
            network that does not take any number of examples.
    """
    try:
        import onnx
    except ImportError as error:
        raise ValueError("ONNX needs onnx: pip install 'margin-jax[onnx]'") from error
    given = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("n"), *example_shape), dtype)
    try:
        traced = jax.make_jaxpr(embed)(given)
    except Exception as error:  # whatever a network of one's own says of an unknown number
        said = (str(error).splitlines() or [repr(error)])[0]
        raise ValueError(
            "the network cannot be written as ONNX: it must take any number of examples, so with "
            f"x.shape[0] instead of len(x); it says: {said}"
        ) from error
    graph = _Graph(onnx)
    first = Value(INPUT, None, given.shape)
    (last,) = graph.run(traced.jaxpr, [graph.constant(c) for c in traced.consts], [first])
    last = graph.whole(last, traced.out_avals[0].shape)
    graph.node("Identity", [graph.name(last)], last.shape, output=OUTPUT)
    of = onnx.helper.np_dtype_to_tensor_dtype
    info = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        graph.nodes,
        "encoder",
        [info(INPUT, of(np.dtype(dtype)), ["n", *example_shape])],
        [info(OUTPUT, of(np.dtype(np.float32)), ["n", *traced.out_avals[0].shape[1:]])],
        graph.constants,
    )
    model = onnx.helper.make_model(
        made,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="margin-jax",
        doc_string=about,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


class _Graph:
    """Nodes and constants so far."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any) -> Value:
        known = np.asarray(value)
        return Value(None, known, known.shape)

    def name(self, value: Value) -> str:
        """What nodes call it; a constant enters the graph here."""
        if value.name is not None:
            return value.name
        known = np.asarray(value.known)
        if known.dtype.name == "bfloat16":  # few runtimes compute with it
            known = known.astype(np.float32)
        name = f"constant_{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(known, name))
        return name

    def node(
        self, kind: str, inputs: list[str], shape: tuple[Any, ...], *, output: str = "", **more: Any
    ) -> Value:
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], **more))
        return Value(output, None, shape)

    def indices(self, values: Sequence[Any]) -> str:
        """A constant of whole numbers."""
        return self.name(self.constant(np.array(values, np.int64)))

    def reshape(self, x: Value, shape: tuple[Any, ...]) -> Value:
        lengths = [n if isinstance(n, int) else -1 for n in shape]
        return self.node("Reshape", [self.name(x), self.indices(lengths)], shape)

    def transpose(self, x: Value, axes: Sequence[int]) -> Value:
        shape = tuple(x.shape[axis] for axis in axes)
        if tuple(axes) == tuple(range(len(axes))):
            return x
        return self.node("Transpose", [self.name(x)], shape, perm=list(axes))

    def whole(self, x: Value, shape: tuple[Any, ...]) -> Value:
        """The same in its full length."""
        if x.shape == shape:
            return x
        batch = self.node("Shape", [INPUT], (1,), end=1)
        sizes = [self.name(batch) if _is_open([n]) else self.indices([n]) for n in shape]
        size = self.node("Concat", sizes, (len(shape),), axis=0)
        return self.node("Expand", [self.name(x), self.name(size)], shape)

    def run(self, jaxpr: Any, consts: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
        """The outputs of what JAX traced."""
        names = [*jaxpr.constvars, *jaxpr.invars]
        known: dict[Any, Value] = dict(zip(names, [*consts, *inputs], strict=True))

        def read(var: Any) -> Value:
            if hasattr(var, "val"):
                return self.constant(np.asarray(var.val, var.aval.dtype))
            return known[var]

        for eqn in jaxpr.eqns:
            outputs = self.equation(eqn, [read(var) for var in eqn.invars])
            known |= zip(eqn.outvars, outputs, strict=True)
        return [read(var) for var in jaxpr.outvars]

    def equation(self, eqn: Any, inputs: list[Value]) -> list[Value]:
        kind, params = eqn.primitive.name, eqn.params
        if kind == "platform_index":  # no platform of JAX: what is for all others
            return [self.constant(len(params["platforms"]) - 1)]
        if kind == "cond" and inputs[0].name is None:
            return self.closed(params["branches"][int(inputs[0].known)], inputs[1:])
        if kind in _CALLS:
            inner = next(params[n] for n in ("jaxpr", "call_jaxpr", "fun_jaxpr") if n in params)
            return self.closed(inner, inputs)
        if kind == "broadcast_in_dim":
            return [self.broadcast(inputs[0], params)]
        if all(value.name is None for value in inputs):
            return self.computed(eqn, inputs)
        if kind in _ELEMENTWISE or kind in _SAME:
            return [self.elementwise(kind, inputs, params)]
        if kind == "transpose":
            return [self.transpose(inputs[0], params["permutation"])]
        full = [self.whole(x, v.aval.shape) for x, v in zip(inputs, eqn.invars, strict=True)]
        shapes = [var.aval.shape for var in eqn.outvars]
        if kind in _REDUCED:
            axes = self.indices(params["axes"])
            return [self.node(_REDUCED[kind], [self.name(full[0]), axes], shapes[0], keepdims=0)]
        if kind == "unstack":
            return self.parts(full[0], params["axis"], shapes)
        write = getattr(self, f"_{kind}", None)
        if write is None:
            raise ValueError(f"the network cannot be written as ONNX: it uses {kind}")
        return [write(full, params, shapes[0])]

    def closed(self, inner: Any, inputs: list[Value]) -> list[Value]:
        consts = [self.constant(c) for c in getattr(inner, "consts", ())]
        return self.run(getattr(inner, "jaxpr", inner), consts, inputs)

    def broadcast(self, x: Value, params: Mapping[str, Any]) -> Value:
        """Only its axes: lengths that are repeated stay 1."""
        shape = [1] * len(params["shape"])
        for axis, length in zip(params["broadcast_dimensions"], x.shape, strict=True):
            shape[axis] = length
        if tuple(shape) == x.shape:
            return x
        if x.name is None:
            return self.constant(np.reshape(x.known, shape))
        return self.reshape(x, tuple(shape))

    def computed(self, eqn: Any, inputs: list[Value]) -> list[Value]:
        """What depends on no input, with a batch of one."""
        known: Sequence[Any] = [x.known for x in inputs]
        if eqn.primitive.name in _ELEMENTWISE or eqn.primitive.name in _SAME:
            known = np.broadcast_arrays(*known)
        else:
            wanted = [_closed(var.aval.shape) for var in eqn.invars]
            known = [np.broadcast_to(x, n) for x, n in zip(known, wanted, strict=True)]
        params = {n: _closed(v) if isinstance(v, tuple) else v for n, v in eqn.params.items()}
        found = eqn.primitive.bind(*map(jax.numpy.asarray, known), **params)
        return [self.constant(x) for x in (found if eqn.primitive.multiple_results else [found])]

    def elementwise(self, kind: str, inputs: list[Value], params: Mapping[str, Any]) -> Value:
        rank = max(len(x.shape) for x in inputs)
        lengths = zip(*([1] * (rank - len(x.shape)) + list(x.shape) for x in inputs), strict=True)
        shape = tuple(next((n for n in column if _is_open([n]) or n != 1), 1) for column in lengths)
        names = [self.name(x) for x in inputs]
        if kind in _SAME:
            return self.node(_SAME[kind], names, shape)
        if kind == "square":
            return self.node("Mul", names * 2, shape)
        if kind == "rsqrt":
            return self.node("Reciprocal", [str(self.node("Sqrt", names, shape).name)], shape)
        if kind == "erfc":
            one = self.name(self.constant(np.float32(1)))
            return self.node("Sub", [one, str(self.node("Erf", names, shape).name)], shape)
        if kind == "integer_pow":
            power = self.name(self.constant(np.float32(params["y"])))
            return self.node("Pow", [*names, power], shape)
        if kind == "ne":
            return self.node("Not", [str(self.node("Equal", names, shape).name)], shape)
        if kind == "select_n":
            which, first, second = names
            return self.node("Where", [which, second, first], shape)
        wanted = np.dtype(params["new_dtype"])
        wanted = np.dtype(np.float32) if wanted.name == "bfloat16" else wanted
        return self.node("Cast", names, shape, to=self.onnx.helper.np_dtype_to_tensor_dtype(wanted))

    def parts(self, x: Value, axis: int, shapes: Sequence[tuple[Any, ...]]) -> list[Value]:
        """Each of what lies along an axis."""
        name = self.name(x)
        return [
            self.node("Gather", [name, self.name(self.constant(np.int64(i)))], shape, axis=axis)
            for i, shape in enumerate(shapes)
        ]

    def _reshape(self, x: list[Value], params: Mapping[str, Any], shape: tuple[Any, ...]) -> Value:
        return self.reshape(x[0], shape)

    _squeeze = _expand_dims = _reshape

    def _concatenate(
        self, x: list[Value], params: Mapping[str, Any], shape: tuple[Any, ...]
    ) -> Value:
        return self.node("Concat", list(map(self.name, x)), shape, axis=params["dimension"])

    def slice(
        self, x: Value, starts: Sequence[int], ends: Sequence[Any], steps: Sequence[int]
    ) -> Value:
        axes = [a for a, end in enumerate(ends) if not _is_open([end])]
        bounds = [[values[a] for a in axes] for values in (starts, ends)]
        given = [*bounds, axes, [steps[a] for a in axes]]
        lengths = [-(-(e - b) // steps[a]) for a, b, e in zip(axes, *bounds, strict=True)]
        shape = list(x.shape)
        for axis, length in zip(axes, lengths, strict=True):
            shape[axis] = length
        return self.node("Slice", [self.name(x), *map(self.indices, given)], tuple(shape))

    def _slice(self, x: list[Value], params: Mapping[str, Any], shape: tuple[Any, ...]) -> Value:
        steps = params["strides"] or [1] * len(shape)
        return self.slice(x[0], params["start_indices"], params["limit_indices"], steps)

    def _gather(self, x: list[Value], params: Mapping[str, Any], shape: tuple[Any, ...]) -> Value:
        """Those of NumPy's basic indexing, whose places are known."""
        numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
        if x[1].name is not None or numbers.operand_batching_dims:
            raise ValueError("the network cannot be written as ONNX: it looks up computed places")
        places, axes = np.asarray(x[1].known), numbers.start_index_map
        if places.ndim == 1:  # one block
            starts = [0] * len(sizes)
            for axis, start in zip(axes, places.tolist(), strict=True):
                starts[axis] = start
            ends = [n if _is_open([n]) else b + n for b, n in zip(starts, sizes, strict=True)]
            return self.reshape(self.slice(x[0], starts, ends, [1] * len(sizes)), shape)
        (axis,) = axes
        rest = tuple(a for a in range(len(shape)) if a != axis)
        if places.ndim != 2 or numbers.offset_dims != rest:
            raise ValueError("the network cannot be written as ONNX: it looks up in many axes")
        taken = self.indices(places[:, 0].tolist())
        return self.node("Gather", [self.name(x[0]), taken], shape, axis=axis)

    def _pad(self, x: list[Value], params: Mapping[str, Any], shape: tuple[Any, ...]) -> Value:
        low, high, inner = zip(*params["padding_config"], strict=True)
        if any(inner):
            raise ValueError("the network cannot be written as ONNX: it pads between pixels")
        return self.node(
            "Pad", [self.name(x[0]), self.indices([*low, *high]), self.name(x[1])], shape
        )

    def _dot_general(
        self, x: list[Value], params: Mapping[str, Any], shape: tuple[Any, ...]
    ) -> Value:
        (left, right), (left_batch, right_batch) = params["dimension_numbers"]
        names, ranks = list(map(self.name, x)), [len(value.shape) for value in x]
        if tuple(left) == (ranks[0] - 1,) and tuple(right) == (0,) and ranks[1] == 2:
            return self.node("MatMul", names, shape)
        first = list(_LETTERS[: ranks[0]])
        second = list(_LETTERS[ranks[0] : sum(ranks)])
        for a, b in zip([*left_batch, *left], [*right_batch, *right], strict=True):
            second[b] = first[a]
        out = [first[a] for a in left_batch]
        out += [c for a, c in enumerate(first) if a not in (*left_batch, *left)]
        out += [c for b, c in enumerate(second) if b not in (*right_batch, *right)]
        equation = f"{''.join(first)},{''.join(second)}->{''.join(out)}"
        return self.node("Einsum", names, shape, equation=equation)

    def _conv_general_dilated(
        self, x: list[Value], params: Mapping[str, Any], shape: tuple[Any, ...]
    ) -> Value:
        numbers = params["dimension_numbers"]
        if params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
            raise ValueError("the network cannot be written as ONNX: it convolves in reverse")
        low, high = zip(*params["padding"], strict=True)
        image = self.transpose(x[0], numbers.lhs_spec)
        if x[1].name is None:
            kernel = self.constant(np.transpose(x[1].known, numbers.rhs_spec))
        else:
            kernel = self.transpose(x[1], numbers.rhs_spec)
        made = self.node(
            "Conv",
            [self.name(image), self.name(kernel)],
            tuple(shape[axis] for axis in numbers.out_spec),
            strides=list(params["window_strides"]),
            pads=[*low, *high],
            dilations=list(params["rhs_dilation"]),
            group=params["feature_group_count"],
        )
        return self.transpose(made, np.argsort(numbers.out_spec).tolist())

    def pool(
        self, kind: str, x: Value, params: Mapping[str, Any], shape: tuple[Any, ...], **more: Any
    ) -> Value:
        """In windows of [batch, height, width, channels]."""
        window, strides = params["window_dimensions"], params["window_strides"]
        low, high = zip(*params["padding"], strict=True)
        dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
        if dilated or len(window) != 4 or (window[0], window[3]) != (1, 1):
            raise ValueError("the network cannot be written as ONNX: it pools otherwise than 2-D")
        made = self.node(
            kind,
            [self.name(self.transpose(x, (0, 3, 1, 2)))],
            tuple(shape[axis] for axis in (0, 3, 1, 2)),
            kernel_shape=list(window[1:3]),
            strides=list(strides[1:3]),
            pads=[*low[1:3], *high[1:3]],
            **more,
        )
        return self.transpose(made, (0, 2, 3, 1))

    def _reduce_window_max(
        self, x: list[Value], params: Mapping[str, Any], shape: tuple[Any, ...]
    ) -> Value:
        return self.pool("MaxPool", x[0], params, shape)

    def _reduce_window_sum(
        self, x: list[Value], params: Mapping[str, Any], shape: tuple[Any, ...]
    ) -> Value:
        mean = self.pool("AveragePool", x[0], params, shape, count_include_pad=1)
        size = self.constant(np.float32(math.prod(params["window_dimensions"])))
        return self.node("Mul", [self.name(mean), self.name(size)], shape)


def _is_open(shape: Sequence[Any]) -> bool:
    """Whether a length is not a number."""
    return any(not isinstance(n, int | np.integer) for n in shape)


def _closed(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """With 1 for the number of examples."""
    return tuple(1 if type(n).__name__ == "_DimExpr" else n for n in values)
