#!/bin/sh
# Says what becomes of engagements, from now on or from --since on, until one ends:
#
#	react.sh [ctl events flags…]
#
# Each fact is a CloudEvent on a line of its own. What is late sees every fact
# all the same, in order: they are kept for seven days.
ctl events --output json --until engagement.ended "$@" | jq -r --unbuffered '
	(.type | split(".")) as [$_, $_, $scope, $service, $fact]
	| if   $scope != "engagement"        then empty
	  elif $fact == "active"             then "\(.subject) active: \(.data.ports | map(.container) | join(","))"
	  elif $fact == "handler-switched"   then "\(.subject) switched to \(.data.image), connections waited \(.data.millis) ms"
	  elif $fact == "switch-failed"      then "\(.subject) not switched: \(.data.error.message)"
	  elif $fact == "ended"              then "\(.subject) ended: \(.data.cause)"
	  elif $fact == "failed"             then "\(.subject) failed: \(.data.error.message)"
	  else empty end'
