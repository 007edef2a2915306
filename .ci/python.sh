# For the scripts beside it.

at_hand() { # The first of these versions that is on the path or that pyenv has, or else python3.
  local version found
  for version; do
    for found in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
      if [[ $("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>&1) == "$version" ]]; then
        echo "$found"
        return
      fi
    done
  done
  echo python3
}
