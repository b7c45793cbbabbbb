#include "runtime/tokenizer.h"
#include <gtest/gtest.h>
