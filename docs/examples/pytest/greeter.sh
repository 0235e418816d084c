#!/bin/sh
# A service to be tested: says hello to whoever connects.
case "$1" in
answer) echo "hello from $(hostname)" ;;
*) exec nc -ll -p 8080 -e "$0" answer ;;
esac
