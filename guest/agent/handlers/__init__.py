"""The methods of the agent, one module for each family, imported when first called (guest floor).

Each module has `METHODS`: name to (function, parameters), where parameters is name to (required, check) and
`check(value)` gives the reason of a refusal or None. A function takes a `dispatch.Call` and the checked parameters;
it returns the result, or None when it will answer through the call later. `dispatch.HANDLERS` says which module to
import.
"""
