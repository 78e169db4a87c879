"""Show the defaults of classes that hold settings in the reference, those of pydantic too."""

from __future__ import annotations

from typing import Any

import griffe


class SettingsClasses(griffe.Extension):
    """Describe the fields of a class that has defaults as the parameters of its constructor."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Visit all classes of the package, after they are loaded."""
        describe_classes(pkg)


def describe_classes(parent: griffe.Module | griffe.Class) -> None:
    """Describe the classes in a module or a class."""
    for member in list(parent.members.values()):
        if member.is_alias or not (member.is_module or member.is_class):
            continue
        if isinstance(member, griffe.Class):
            describe_class(member)
        describe_classes(member)


def describe_class(settings: griffe.Class) -> None:
    """Describe the fields as parameters, unless they are results or the class has its own constructor."""
    fields = list_fields(settings)
    is_pydantic = any(str(base) == "BaseModel" for base in settings.bases)
    is_dataclass = any("dataclass" in str(decorator.value) for decorator in settings.decorators)
    if settings.docstring is None or not (is_pydantic or is_dataclass) or not any(field.value for field in fields):
        return
    settings.docstring.value = settings.docstring.value.replace("Attributes:\n", "Args:\n", 1)
    for field in fields:
        field.annotation = simplify(field.annotation, settings.module)
    if is_pydantic:
        settings.bases = []
        settings.set_member("__init__", make_constructor(settings, fields))


def list_fields(settings: griffe.Class) -> list[griffe.Attribute]:
    """The annotated fields of a class, in order."""
    members = settings.members.values()
    return [
        member
        for member in members
        if isinstance(member, griffe.Attribute) and member.annotation and not {"property", "classvar"} & member.labels
    ]


def make_constructor(settings: griffe.Class, fields: list[griffe.Attribute]) -> griffe.Function:
    """The constructor that pydantic generates."""
    kind = griffe.ParameterKind.keyword_only
    parameters = [
        griffe.Parameter(field.name, annotation=field.annotation, kind=kind, default=field.value) for field in fields
    ]
    constructor = griffe.Function("__init__", parameters=griffe.Parameters(*parameters), parent=settings)
    constructor.lineno = constructor.endlineno = 0
    return constructor


def simplify(annotation: Any, module: griffe.Module) -> Any:
    """Replace private names of types by what they stand for, and leave out their validators."""
    if isinstance(annotation, griffe.ExprName):
        definition = module.members.get(annotation.name)
        if isinstance(definition, griffe.Attribute) and definition.value is not None:
            return simplify(definition.value, module)
    if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) == "Annotated":
        return simplify(annotation.slice.elements[0], module)
    if isinstance(annotation, griffe.ExprSubscript):
        return griffe.ExprSubscript(annotation.left, simplify(annotation.slice, module))
    if isinstance(annotation, griffe.ExprTuple):
        return griffe.ExprTuple([simplify(element, module) for element in annotation.elements], annotation.implicit)
    if isinstance(annotation, griffe.ExprBinOp):
        left, right = simplify(annotation.left, module), simplify(annotation.right, module)
        return griffe.ExprBinOp(left, annotation.operator, right)
    return annotation
