"""Eight numbers at a time inside numba kernels: loads, stores and arithmetic of vector registers.

LLVM does not vectorise loops over a dozen channels whose arrays may overlap. Kernels that hold
eight channels in a `Lanes` value say it themselves. An index counts the numbers of a C-contiguous
array from its start, whatever its shape, and is not checked. Input and output: `group_linear`.
"""
# mypy: ignore-errors

from typing import Any, no_type_check

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

NUM_LANES = 8


class Lanes(types.Type):
    """numba's type of eight numbers of one dtype."""

    def __init__(self, dtype: Any) -> None:
        """`dtype`: numba's float32 or float64."""
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
@no_type_check
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        number = manager.lookup(lanes.dtype).get_value_type()
        super().__init__(manager, lanes, ir.VectorType(number, NUM_LANES))


@intrinsic
@no_type_check
def load(typing_context, array, index):
    """The eight numbers from `index` on."""

    def generate(context, builder, signature, args):
        pointer, itemsize = _pointer(context, builder, signature.args[0], *args)
        return builder.load(_as_lanes(builder, pointer), align=itemsize)

    return Lanes(array.dtype)(array, types.intp), generate


@intrinsic
@no_type_check
def store(typing_context, array, index, lanes):
    """Write eight numbers from `index` on."""

    def generate(context, builder, signature, args):
        pointer, itemsize = _pointer(context, builder, signature.args[0], *args[:2])
        builder.store(args[2], _as_lanes(builder, pointer), align=itemsize)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


@intrinsic
@no_type_check
def repeat(typing_context, array, index):
    """The number at `index`, eight times."""

    def generate(context, builder, signature, args):
        pointer, _ = _pointer(context, builder, signature.args[0], *args)
        return _repeated(builder, builder.load(pointer))

    return Lanes(array.dtype)(array, types.intp), generate


@intrinsic
@no_type_check
def zeros(typing_context, array):
    """Eight zeros of the array's dtype."""

    def generate(context, builder, signature, args):
        return context.get_value_type(signature.return_type)(None)

    return Lanes(array.dtype)(array), generate


@intrinsic
@no_type_check
def add(typing_context, first, second):
    """The sum of two."""

    def generate(context, builder, signature, args):
        return builder.fadd(*args, flags=("contract",))

    return first(first, second), generate


@intrinsic
@no_type_check
def add_product(typing_context, total, first, second):
    """The product of the last two, added to the first; rounded once where the processor can."""

    def generate(context, builder, signature, args):
        product = builder.fmul(args[1], args[2], flags=("contract",))
        return builder.fadd(args[0], product, flags=("contract",))

    return total(total, first, second), generate


@intrinsic
@no_type_check
def scaled(typing_context, lanes, number):
    """The lanes times a number."""

    def generate(context, builder, signature, args):
        return builder.fmul(args[0], _repeated(builder, args[1]))

    return lanes(lanes, lanes.dtype), generate


@intrinsic
@no_type_check
def where_positive(typing_context, condition, lanes):
    """`lanes` where the condition is > 0 or NaN, as torch's relu has it, else 0."""

    def generate(context, builder, signature, args):
        zero = context.get_value_type(signature.return_type)(None)
        return builder.select(builder.fcmp_unordered(">", args[0], zero), args[1], zero)

    return lanes(condition, lanes), generate


@intrinsic
@no_type_check
def total(typing_context, lanes):
    """The sum of the eight numbers, in pairs."""

    def generate(context, builder, signature, args):
        parts = [
            builder.extract_element(args[0], ir.Constant(ir.IntType(32), i))
            for i in range(NUM_LANES)
        ]
        while len(parts) > 1:
            half = len(parts) // 2
            parts = [builder.fadd(parts[i], parts[i + half]) for i in range(half)]
        return parts[0]

    return lanes.dtype(lanes), generate


@no_type_check
def _pointer(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    itemsize = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    return cgutils.gep(builder, data, index), itemsize


@no_type_check
def _as_lanes(builder, pointer):
    return builder.bitcast(pointer, ir.VectorType(pointer.type.pointee, NUM_LANES).as_pointer())


@no_type_check
def _repeated(builder, number):
    kind = ir.VectorType(number.type, NUM_LANES)
    first = builder.insert_element(
        ir.Constant(kind, ir.Undefined), number, ir.Constant(ir.IntType(32), 0)
    )
    zeros_of = ir.Constant(ir.VectorType(ir.IntType(32), NUM_LANES), None)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros_of)
