# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 98: An example
#
# **You will**
#
# * (write what the learner does, one line each).
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *An example* first.

# %%
# {{ install }}

# %%
from course_utils.exercises import check

# %% [markdown]
# ## Exercise 1: an example
#
# Write a function that returns twice its argument.


# %% tags=["exercise", "points:1"]
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    # Hint: multiply.
    return 2 * x
    ### END SOLUTION


# %% tags=["check"]
check("an_example.double", double)
