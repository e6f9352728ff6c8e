"""Evaluation: methods x tasks, each answer on disk as soon as it is there, percentages with paired intervals.

`questions` reads prompts files, `toyworld` has the tasks of the embedded pair, `answers` goes from either to rows,
`folder` keeps what was answered, `report` counts and prints, `harness` is EleutherAI's.
"""
