"""Where the methods of objects are that a trace has made, such as those of all modules in it.

Dynamo (2.13 and 2.14) knows the class of an object that it made, and no place for what it finds
there: it does not guard the object's methods, and cannot trace one that closes over an object or a
tensor. Here such methods have the places that those of an object with a place of its own have. Nor
can it return a method that it has bound; here it can.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import functools
import itertools
import sys
from types import FunctionType
from typing import Any

__all__ = ["give_places"]

_LIBRARIES = {*sys.stdlib_module_names, "torch", "optree", "parallax", "typing_extensions"}


@functools.cache
def give_places() -> None:
    """Has dynamo know the methods of the objects that it makes, from now on. Only in a trace."""
    from torch._dynamo.bytecode_transformation import create_call_function
    from torch._dynamo.guards import GuardBuilder, install_guard
    from torch._dynamo.source import AttrSource, GetItemSource, TypeDictSource, TypeMROSource
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._dynamo.variables import functions
    from torch._dynamo.variables.misc import SuperVariable
    from torch._dynamo.variables.user_defined import UserDefinedObjectVariable

    objects: Any = UserDefinedObjectVariable
    methods: Any = functions.UserMethodVariable
    supers: Any = SuperVariable
    of_type, of_data = objects.resolve_type_attr, objects.resolve_data_descriptor
    walk, source_of = objects.get_source_by_walking_mro, methods.get_source
    above = supers._resolved_getattr_and_source

    def is_module(variable: Any) -> bool:
        return isinstance(variable, objects) and hasattr(variable.value_type, "__layout__")

    def is_made(variable: Any) -> bool:
        """Whether a variable is an object that the trace has made, of no class of a library."""
        if not isinstance(variable, objects) or variable.source or not variable.cls_source:
            return False
        home = str(variable.value_type.__module__).partition(".")[0]
        return is_module(variable) or home not in _LIBRARIES

    def get_source_by_walking_mro(self: Any, tx: Any, name: str) -> Any:
        """Guards, too, that no other function stands there, or in front of it."""
        place = walk(self, tx, name)
        if is_module(self) or is_made(self):
            if name not in vars(self.value_type):
                absent = functools.partial(GuardBuilder.DICT_NOT_CONTAINS, key=name)
                install_guard(TypeDictSource(self.cls_source).make_guard(absent))
            found = self.lookup_class_mro_attr(name)
            if type(found) is FunctionType:
                install_guard(place.make_guard(GuardBuilder.CLOSURE_MATCH))
            elif type(found) in bound and type(found.__func__) is FunctionType:
                function = AttrSource(place, "__func__")
                install_guard(function.make_guard(GuardBuilder.CLOSURE_MATCH))
        return place

    def get_source(self: Any) -> Any:
        if not is_made(self.obj):
            return source_of(self)
        if self.source_fn is None:
            inside = [vars(cls) for cls in self.obj.value_type.__mro__]
            names = itertools.chain([self.fn.__name__], *inside)
            name = next((n for n in names if self.obj.lookup_class_mro_attr(n) is self.fn), None)
            if name is not None:
                tx = InstructionTranslator.current_tx()
                self.source_fn = self.obj.get_source_by_walking_mro(tx, name)
        return self.source_fn

    def resolve_type_attr(self: Any, tx: Any, name: str, attribute: Any, source: Any) -> Any:
        if is_made(self) and type(attribute) is not FunctionType:
            source = self.get_source_by_walking_mro(tx, name)
            if type(attribute) in bound:
                made = bound[type(attribute)](attribute, source=source)
                return made.tp_descr_get_impl(tx, self, class_of(self, tx))
        return of_type(self, tx, name, attribute, source)

    bound = {
        staticmethod: functions.StaticMethodVariable,
        classmethod: functions.ClassMethodVariable,
    }

    def class_of(self: Any, tx: Any) -> Any:
        return objects.build(tx, self.value_type, self.cls_source)

    def resolve_data_descriptor(self: Any, tx: Any, name: str, attribute: Any, source: Any) -> Any:
        if is_made(self) and type(attribute) is property:
            place = self.get_source_by_walking_mro(tx, name)
            made = functions.PropertyVariable(attribute, source=place)
            return made.tp_descr_get_impl(tx, self, class_of(self, tx))
        return of_data(self, tx, name, attribute, source)

    def resolved(self: Any, tx: Any, name: str) -> Any:
        value, source = above(self, tx, name)
        if source is None and is_made(self.objvar):
            classes, last = self.objvar.value_type.__mro__, self.typevar.as_python_constant()
            start = classes.index(last) + 1 if last in classes else len(classes)
            for index in range(start, len(classes)):
                if name in vars(classes[index]):
                    cls = GetItemSource(TypeMROSource(self.objvar.cls_source), index)
                    return value, AttrSource(cls, name)
        return value, source

    def reconstruct(self: Any, codegen: Any) -> None:
        """Writes code for a method that the trace has bound, and returns."""
        codegen.add_push_null(lambda: codegen.load_import_from("types", "MethodType"))
        name = codegen.tx.output.install_global_by_id("parallax_method", self.fn)
        codegen.append_output(codegen.create_load_global(name, add=True))
        codegen(self.obj)
        codegen.extend_output(create_call_function(2, False))

    methods.get_source = get_source
    methods.reconstruct = reconstruct
    objects.get_source_by_walking_mro = get_source_by_walking_mro
    objects.resolve_type_attr = resolve_type_attr
    objects.resolve_data_descriptor = resolve_data_descriptor
    supers._resolved_getattr_and_source = resolved
