"""Transformations of functions, as `jax` and `torch.func` both have them.

Each takes the framework's module `f`, a `call.Call`, and the point that it is
transformed at; it gives quantities by the names that `expected.Expected` has for them.
"""


def vjp(f, call, *point):
    y, pull_back = f.vjp(call.function, *point)
    return {"value": y, "gradient": pull_back(call.upstream)}


def grad_of_grad(f, call, *point):
    slope = _along(_gradient(f, call), call)
    return {"hvp": f.grad(slope, _all(call))(*point)}


def grad_of_grad_of_grad(f, call, *point):
    slope = _along(_gradient(f, call), call)
    curvature = _along(f.grad(slope, _all(call)), call)
    return {"third": f.grad(curvature, _all(call))(*point)}


def jvp(f, call, *point):
    y, pushed = f.jvp(call.function, point, tuple(call.tangent))
    return {"value": y, "pushed": pushed}


def jvp_of_jvp(f, call, *point):
    pushed, twice = f.jvp(_pushed(f, call), point, tuple(call.tangent))
    return {"pushed": pushed, "pushed_twice": twice}


def jvp_of_grad(f, call, *point):
    gradient, hvp = f.jvp(_gradient(f, call), point, tuple(call.tangent))
    return {"gradient": gradient, "hvp": hvp}


def grad_of_jvp(f, call, *point):
    pushed = _pushed(f, call)

    def slope(*point):
        return (pushed(*point) * call.upstream).sum()

    return {"hvp": f.grad(slope, _all(call))(*point)}


def linearize(f, call, *point):
    y, linear = f.linearize(call.function, *point)
    return {"value": y, "pushed": linear(*call.tangent)}


def jacrev(f, call, *point):
    return {"pushed": _times(f.jacrev(call.function, _all(call))(*point), call)}


def jacfwd(f, call, *point):
    return {"pushed": _times(f.jacfwd(call.function, _all(call))(*point), call)}


def hessian(f, call, *point):
    rows = f.hessian(_loss(call), _all(call))(*point)
    return {"hvp": [_times(row, call) for row in rows]}


def vmap(f, call, *point):
    return {"value": f.vmap(call.function, call.in_axes)(*point)}


def vmap_of_grad(f, call, *point):
    return {"gradient": f.vmap(_gradient(f, call), call.in_axes)(*point)}


def grad_of_vmap(f, call, *point):
    def total(*point):
        return (f.vmap(call.function, call.in_axes)(*point) * call.upstream).sum()

    # For the stacked ones: of what calls share, gradients come added up.
    stacked = tuple(i for i, axis in enumerate(call.in_axes) if axis == 0)
    found = dict(zip(stacked, f.grad(total, stacked)(*point), strict=True))
    return {"gradient": [found.get(i) for i in _all(call)]}


def _loss(call):
    return lambda *point: (call.function(*point) * call.upstream).sum()


def _gradient(f, call):
    return f.grad(_loss(call), _all(call))


def _pushed(f, call):
    return lambda *point: f.jvp(call.function, point, tuple(call.tangent))[1]


def _all(call):
    return tuple(range(len(call.point)))


def _along(gradient, call):
    def slope(*point):
        pairs = zip(gradient(*point), call.tangent, strict=True)
        return sum((one * other).sum() for one, other in pairs)

    return slope


def _times(jacobian, call):
    """A row of blocks of a Jacobian, times the tangent, added up."""
    return sum(
        (
            block.reshape(*block.shape[: block.ndim - one.ndim], -1) * one.reshape(-1)
        ).sum(-1)
        for block, one in zip(jacobian, call.tangent, strict=True)
    )
