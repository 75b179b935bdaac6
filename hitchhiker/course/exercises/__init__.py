"""Every exercise of the book by its number, ``"05.2"``: one module for each part."""

from hitchhiker.course.checking import Exercise
from hitchhiker.course.exercises import part1, part2, part3, part4, part5

EXERCISES: dict[str, Exercise] = {
    **part1.EXERCISES, **part2.EXERCISES, **part3.EXERCISES, **part4.EXERCISES, **part5.EXERCISES,
}  # fmt: skip
